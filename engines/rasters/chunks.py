"""What is finished of a raster, on disk: a file for every part, so that a run that was killed goes on where it was."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from engines.contract import UInt8
from engines.errors import DeployError
from engines.files import replacing, replacing_path, write_json
from engines.guard.ledger import ledger
from engines.rasters.gdal import TILE, Box, Georeference
from engines.rasters.gdal_write import read_chunk, write_chunk
from engines.spec import ModelSpec

_RUN, _EMPTY = "run.json", ".none"


class Chunks:
    """A hidden folder beside the results, with the finished parts of one layer each: labels, and confidence.

    height, width: of the whole, in pixels.  A part that is absent is `nothing` throughout.
    """

    def __init__(self, folder: Path, height: int, width: int, place: Georeference) -> None:
        self.folder, self.height, self.width, self._place = folder, height, width, place

    @classmethod
    def begin(
        cls, folder: Path, identity: Mapping[str, Any], size: tuple[int, int], place: Georeference, resume: bool
    ) -> Chunks:  # fmt: skip
        """identity: what the results depend on.  Raises DeployError where `resume` finds parts of another run."""
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        found = cls(folder, *size, place)
        if folder.exists() and not resume:
            shutil.rmtree(folder)
        if not folder.exists():
            found._make({"key": key, **identity})
        if found._key() != key:
            raise DeployError(
                f"{folder}: holds parts of a run with another {found._other_than(identity)}; finish that one, or "
                "remove them"
            )
        return found

    def _make(self, body: Mapping[str, Any]) -> None:
        """In one step, since another shard may be about to do the same."""
        new = self.folder.with_name(f"{self.folder.name}.{os.getpid()}")
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

    def _other_than(self, identity: Mapping[str, Any]) -> str:
        """In which of the things that results depend on the run of these parts is another."""
        try:
            held = json.loads((self.folder / _RUN).read_text())
        except (OSError, ValueError):
            return "bundle, input or options"
        now, before = json.loads(json.dumps(identity)), held if isinstance(held, dict) else {}
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

    def mosaic(self, layer: str, nothing: int | None, spec: ModelSpec | None = None) -> Path:
        """All parts of a layer as one file for GDAL.  spec: whose classes its labels are.  Raises DeployError."""
        numbers = ", ".join(repr(number) for number in _gdal_order(self._place))
        crs = f"<SRS>{escape(self._place.crs)}</SRS>" if self._place.crs else ""
        where = f"<GeoTransform>{numbers}</GeoTransform>" if self._place.known else ""
        path = self.folder / f"{layer}.vrt"
        with replacing(path) as file:
            file.write(
                f'<VRTDataset rasterXSize="{self.width}" rasterYSize="{self.height}">{crs}{where}'
                f"{'' if spec is None else _names(spec)}"
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
        """Remove them, once the results are there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _gdal_order(place: Georeference) -> tuple[float, ...]:
    a, b, c, d, e, f = place.transform
    return c, a, b, f, d, e


def _names(spec: ModelSpec) -> str:
    items = (f'<MDI key="CLASS_{index}">{escape(name)}</MDI>' for index, name in enumerate(spec.classes))
    return f"<Metadata>{''.join(items)}</Metadata>"


def _colours(spec: ModelSpec) -> str:
    entries = (f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in spec.palette)
    return f"<ColorInterp>Palette</ColorInterp><ColorTable>{''.join(entries)}</ColorTable>"
