"""GDAL through rasterio: a raster read by windows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.errors import DeployError, without_secrets
from engines.images.rasters import SUFFIXES, is_name, is_zarr
from engines.images.read import JPEG_2000
from engines.images.read import SUFFIXES as PICTURES
from engines.images.tiff import SUFFIXES as TIFFS
from engines.rasters.place import Box, Georeference, place_of
from engines.rasters.zarr import finest

_PICTURES = frozenset({"GTiff", "JP2OpenJPEG", "JPEG", "PNG", "GIF", "WEBP", "BMP", "PNM", "AVIF", "HEIF"})  # drivers
CACHE_MB = 32  # GDAL's, of decoded blocks
FEW_ROWS = 128  # that are read and converted together: what is made on the way is as large as they are
_NOT_KEPT = frozenset({"JP2OpenJPEG"})  # drivers whose decoded blocks GDAL does not keep
TILE = 512  # a side of what is compressed together
INSTALL = "pip install 'edgeseg[geo]'"
_ADVICE = {  # by what GDAL says
    "missing codec": "write it anew in one that GDAL has "
    "(vips tiffsave IN OUT --compression jpeg --tile --pyramid --bigtiff)",
    "Unsupported codec": "this GDAL knows few of Zarr 3; write it in format 2 (zarr_format=2)",
}


class RasterFile:
    """An open raster.  height, width in pixels.  Its bands are all but one of alpha.  colours: of a paletted band."""

    def __init__(self, path: str | Path, dataset: Any) -> None:
        from rasterio.enums import ColorInterp, MaskFlags

        self.path, self._name, self._data = Path(path), str(path), dataset
        self.height, self.width = int(dataset.height), int(dataset.width)
        kinds = list(dataset.colorinterp)
        self._bands = [i + 1 for i, kind in enumerate(kinds) if kind != ColorInterp.alpha]
        self.nodata = dataset.nodata
        self._nodatas = [dataset.nodatavals[band - 1] for band in self._bands]
        flags = dataset.mask_flag_enums[self._bands[0] - 1]
        self._masked = MaskFlags.alpha in flags or MaskFlags.per_dataset in flags
        self.colours: UInt8 | None = None
        if len(self._bands) == 1 and kinds[self._bands[0] - 1] == ColorInterp.palette:
            table = dataset.colormap(self._bands[0])
            self.colours = np.zeros((max(256, *table) + 1, 3), np.uint8)
            for index, colour in table.items():
                self.colours[index] = colour[:3]
        self.place = place_of(dataset)

    def identity(self) -> dict[str, Any]:
        """What changes with the pixels: names, sizes and times of all its files, but for what viewers put beside them.

        For JSON.
        """
        files = sorted(Path(name) for name in self._data.files if not name.endswith((".ovr", ".aux.xml")))
        there = [(file, file.stat()) for file in files if file.is_file()]
        whole = self.path.resolve() if self.path.exists() else without_secrets(self._name)
        return {"input": str(whole), "files": [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in there]}

    def note(self) -> str:
        """What the user should hear of what is not read, or ""."""
        pages = self._data.tags(ns="SUBDATASETS").values()
        count = sum(f"({self.width}P x {self.height}L" in page for page in pages)
        if count > 1:
            return f"{self.path.name} holds {count} pages of this size, of which the first is read"
        return ""

    def rows_at_once(self, width: int) -> int:
        """How many rows to read together, of so many columns: few, but where GDAL would decode the same blocks again,
        since it does not keep those of JPEG 2000, or a row of them does not fit into its cache.
        """
        rows = int(self._data.block_shapes[0][0])
        row: int = width * sum(np.dtype(kind).itemsize for kind in self._data.dtypes)
        cache = CACHE_MB * 2**20
        if self._data.driver not in _NOT_KEPT and rows * row <= cache / 2:
            return FEW_ROWS
        return max(FEW_ROWS, min(rows, cache // row))

    def read(self, box: Box, bands: Sequence[int]) -> NDArray[Any]:
        """(h, w, B) of the file's own type.  bands: counted from 1, () for all.  Raises DeployError."""
        if bands and max(bands) > len(self._bands):
            raise DeployError(
                f"raster {self.path}: got {len(self._bands)} band(s), expected {max(bands)} for --bands at least"
            )
        chosen = [self._bands[band - 1] for band in bands] if bands else self._bands
        with explained(self.path, "raster"):
            values = self._data.read(chosen, window=_window(box))
        return np.moveaxis(values, 0, 2)

    def is_nodata(self, values: NDArray[Any], bands: Sequence[int]) -> NDArray[np.bool_]:
        """(h, w): where every one of the bands that were read has the value that stands for nothing in it."""
        found = np.ones(values.shape[:2], np.bool_)
        for index, nodata in enumerate([self._nodatas[band - 1] for band in bands] if bands else self._nodatas):
            if nodata is None:
                return np.zeros(values.shape[:2], np.bool_)
            found &= np.isnan(values[:, :, index]) if np.isnan(nodata) else values[:, :, index] == nodata
        return found

    def tag(self, name: str) -> str:
        """Its value, or ""."""
        return str(self._data.tags().get(name, ""))

    @property
    def overviews(self) -> list[int]:
        """How many times smaller each is."""
        return list(self._data.overviews(1))

    def tiles(self) -> Iterator[UInt8]:
        """Of the only band of a TIFF, those that are there."""
        for (row, column), window in self._data.block_windows(1):
            if self._data.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=1) is not None:
                with explained(self.path, "output"):
                    yield self._data.read(1, window=window)

    def hidden(self, box: Box) -> NDArray[np.bool_] | None:
        """(h, w): where alpha or a mask say that there is nothing; None where the file has neither."""
        if not self._masked:
            return None
        with explained(self.path, "raster"):
            found: NDArray[np.bool_] = self._data.read_masks(self._bands[0], window=_window(box)) == 0
        return found


@contextmanager
def open_raster(path: str | Path, overview: int | None = None) -> Iterator[RasterFile]:
    """path: a file, or what else GDAL knows by a name.  Raises DeployError where GDAL cannot read it, or rasterio is
    not installed.  overview: one of them, the finest 0, in place of the whole.
    """
    rasterio = require_rasterio(path)
    with environment(), explained(path, "raster"):
        name = finest(Path(path)) if is_zarr(Path(path)) else path
        dataset = rasterio.open(name, **({} if overview is None else {"overview_level": overview}))
    with environment(), dataset:
        if dataset.count == 0:
            raise DeployError(f"raster {path}: {_parts(dataset)}")
        yield RasterFile(path, dataset)


def is_raster(path: str, most: int) -> bool:
    """Whether GDAL reads it, and if it may be a picture, too, it lies on a map or has more than `most` pixels.

    Not without rasterio, but for what only GDAL knows.
    """
    suffix = Path(path).suffix.lower()
    if suffix in PICTURES - TIFFS - JPEG_2000 or is_name(path):
        return is_name(path)
    try:
        import rasterio
        from rasterio.errors import RasterioIOError
    except ImportError:
        return False
    with environment():
        try:
            with rasterio.open(path) as dataset:
                picture = dataset.driver in _PICTURES and suffix not in SUFFIXES
                return not picture or place_of(dataset).located != "" or dataset.width * dataset.height > most
        except RasterioIOError:
            return suffix in SUFFIXES  # nobody else reads it: why GDAL does not is said when it is run


def place_at(path: Path) -> Georeference:
    """Where the file's pixels lie on a map.  Raises DeployError."""
    with open_raster(path) as file:
        return file.place


def _parts(dataset: Any) -> str:
    """What to do about a file without bands of its own."""
    names = list(dataset.subdatasets)
    if not names:
        return "got no bands"
    some = " or ".join(names[:4]) + (f" or {len(names) - 4} others" if len(names) > 4 else "")
    return f"holds {len(names)} rasters, expected one; give one of them by its name: {some}"


def _window(box: Box) -> Any:
    from rasterio.windows import Window

    return Window.from_slices(box[:2], box[2:])


def environment(**options: int | str) -> Any:
    """GDAL's own lines are not for our user."""
    from rasterio import Env
    from rasterio.errors import NotGeoreferencedWarning

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # a picture is a raster too
    return Env(GDAL_CACHEMAX=CACHE_MB, CPL_LOG=os.devnull, **options)


def require_rasterio(path: str | Path) -> Any:
    try:
        import rasterio
    except ImportError as error:
        raise DeployError(f"raster {path}: expected rasterio for it; {INSTALL}") from error
    return rasterio


def said(error: BaseException) -> str:
    """What GDAL has to say, in one line."""
    return f"GDAL says: {' '.join(str(error).split())[:160].rstrip('.')}"


def disk_full(path: str | Path) -> str:
    """Why writing there failed, if it is that or a folder that went away, which GDAL tells in many words but these."""
    try:
        return "; no space is left there" if disk_usage(Path(path).parent).free < 2**20 else ""
    except FileNotFoundError:
        return "; its folder is gone"


@contextmanager
def explained(path: str | Path, what: str) -> Iterator[None]:
    from rasterio._err import CPLE_BaseError  # which rasterio.shutil lets through
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError, ValueError) as error:
        first: BaseException = error
        while isinstance(first.__cause__, RasterioError | CPLE_BaseError):
            first = first.__cause__
        advice = next((f"; {does}" for text, does in _ADVICE.items() if text in str(first)), "")
        advice = advice or (disk_full(path) if what == "output" else "")
        raise DeployError(f"{what} {path}: {said(first)}{advice}") from error
