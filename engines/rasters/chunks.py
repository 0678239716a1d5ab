"""What is finished of a raster, on disk: a file for every part, so that a run that was killed goes on where it was."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from engines.contract import UInt8
from engines.errors import DeployError
from engines.files import replacing, replacing_path, write_json
from engines.guard.ledger import ledger
from engines.rasters.gdal import TILE
from engines.rasters.gdal_write import read_chunk, write_chunk
from engines.rasters.place import Box, Georeference
from engines.spec import ModelSpec

RUN = "EDGESEG_RUN"  # a tag of the results: of which run, and what else that made
_RUN, _EMPTY = "run.json", ".none"


class Chunks:
    """A hidden folder beside the results, with the finished parts of one layer each: labels, and confidence.

    identity: what the results depend on.  size: height and width of the whole, in pixels.  key: the identity's digest,
    which the results carry.  A part that is absent is `nothing` throughout.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], size: tuple[int, int], place: Georeference
    ) -> None:  # fmt: skip
        self.folder, self._identity, self._place = folder, identity, place
        self.height, self.width = size
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def begin(self, resume: bool) -> None:
        """Make the folder, or go on with it.  Raises DeployError where `resume` finds parts of another run."""
        if self.folder.exists() and not resume:
            shutil.rmtree(self.folder)
        if not self.folder.exists():
            self._make({"key": self.key, **self._identity})
        if self._key() != self.key:
            raise DeployError(
                f"{self.folder}: holds parts of a run with another {self._other()}; finish that one, or remove them"
            )

    def _aside(self) -> Path:
        """Where it is made and removed, so that it is there whole or not at all."""
        return self.folder.with_name(f"{self.folder.name}.{secrets.token_hex(8)}")

    def _make(self, body: Mapping[str, Any]) -> None:
        """In one step, since another shard may be about to do the same."""
        new = self._aside()
        try:
            with ledger.temporary(new):
                new.mkdir()
                write_json(new / _RUN, body)
                new.rename(self.folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # the other one was first
                raise DeployError(f"output {self.folder}: cannot be created: {error.strerror}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _key(self) -> str:
        try:
            return str(json.loads((self.folder / _RUN).read_text())["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _other(self) -> str:
        """In which of the things that results depend on the run of these parts is another."""
        try:
            held = json.loads((self.folder / _RUN).read_text())
        except (OSError, ValueError):
            return "bundle, input or options"
        now, before = json.loads(json.dumps(self._identity)), held if isinstance(held, dict) else {}
        return " and ".join(name for name in now if before.get(name) != now[name]) or "version of edgeseg"

    def put(self, layer: str, box: Box, values: UInt8, nothing: int) -> None:
        """values (h, w): of the part `box`.  Whole or not at all.  Raises DeployError."""
        path = self._path(layer, box)
        if (values == nothing).all():
            with replacing(path.with_suffix(_EMPTY)):
                return
        with replacing_path(path, ending=path.suffix) as new:
            write_chunk(new, values, self._place.moved(box[0], box[2]))

    def done(self, layer: str, box: Box) -> bool:
        path = self._path(layer, box)
        return path.exists() or path.with_suffix(_EMPTY).exists()

    def parts(self, layer: str) -> Iterator[UInt8]:
        """All that are finished, but for those that hold nothing."""
        yield from map(read_chunk, self._files(layer))

    def mosaic(self, layer: str, nothing: int | None, spec: ModelSpec | None = None, also: str = "") -> Path:
        """All parts of a layer as one file for GDAL.  spec: whose classes its labels are.  also: what else the run
        made.  Raises DeployError.
        """
        about = {RUN: f"{self.key} {also}".strip()}
        about |= {} if spec is None else {f"CLASS_{index}": name for index, name in enumerate(spec.classes)}
        path = self.folder / f"{layer}.vrt"
        with replacing(path) as file:
            file.write(
                f'<VRTDataset rasterXSize="{self.width}" rasterYSize="{self.height}">'
                f"{_where(self._place)}{_tags(about)}"
                f'<VRTRasterBand dataType="Byte" band="1" blockXSize="{TILE}" blockYSize="{TILE}">'
                f"{'' if nothing is None else f'<NoDataValue>{nothing}</NoDataValue>'}"
                f"{'' if spec is None else _colours(spec)}".encode()
            )
            for part in self._files(layer):
                file.write(self._source(part).encode())
            file.write(b"</VRTRasterBand></VRTDataset>\n")
        return path

    def _files(self, layer: str) -> list[Path]:
        return sorted(self.folder.glob(f"{layer}-*.tif"))

    def _source(self, part: Path) -> str:
        _, row, column, height, width = part.stem.split("-")
        size = f'xSize="{width}" ySize="{height}"'
        return (
            f'<SimpleSource><SourceFilename relativeToVRT="1">{part.name}</SourceFilename><SourceBand>1</SourceBand>'
            f'<SourceProperties RasterXSize="{width}" RasterYSize="{height}" DataType="Byte" BlockXSize="{TILE}" '
            f'BlockYSize="{TILE}"/><SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{column}" yOff="{row}" {size}/>'
            "</SimpleSource>"
        )

    def _path(self, layer: str, box: Box) -> Path:
        row0, row1, column0, column1 = box
        return self.folder / f"{layer}-{row0}-{column0}-{row1 - row0}-{column1 - column0}.tif"

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether the results are ours to write: False where another shard is at it, or has done it."""
        with ExitStack() as stack:
            try:
                run = stack.enter_context(open(self.folder / _RUN))
                fcntl.flock(run, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however that ends
                mine = (self.folder / _RUN).exists()
            except (FileNotFoundError, BlockingIOError):
                mine = False
            yield mine

    def end(self) -> None:
        """Remove them, once the results are there: in one step for whoever still writes one, who finds no folder."""
        old = self._aside()
        with ledger.temporary(old):
            with suppress(OSError):
                self.folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)


def _where(place: Georeference) -> str:
    """For GDAL, which has the order of numbers of its own."""
    a, b, c, d, e, f = place.transform
    found = f"<SRS>{escape(place.crs)}</SRS>" if place.crs else ""
    if place.known:
        found += f"<GeoTransform>{c!r}, {a!r}, {b!r}, {f!r}, {d!r}, {e!r}</GeoTransform>"
    if place.points:
        points = (
            f'<GCP Id="{number}" Pixel="{column!r}" Line="{row!r}" X="{x!r}" Y="{y!r}" Z="{z!r}"/>'
            for number, (row, column, x, y, z) in enumerate(place.points, 1)
        )
        found += f"<GCPList Projection={quoteattr(place.points_crs)}>{''.join(points)}</GCPList>"
    return found + (_tags(dict(place.rpcs), "RPC") if place.rpcs else "")


def _tags(about: Mapping[str, str], domain: str = "") -> str:
    items = (f"<MDI key={quoteattr(key)}>{escape(value)}</MDI>" for key, value in about.items())
    return f"<Metadata{domain and f' domain={quoteattr(domain)}'}>{''.join(items)}</Metadata>"


def _colours(spec: ModelSpec) -> str:
    entries = (f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in spec.palette)
    return f"<ColorInterp>Palette</ColorInterp><ColorTable>{''.join(entries)}</ColorTable>"
