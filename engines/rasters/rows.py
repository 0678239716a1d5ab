"""The rows of a raster, read as windows need them: what a device takes in place of an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.images.bands import picture_of, too_dark
from engines.rasters.gdal import FEW_ROWS, RasterFile
from engines.rasters.place import Box
from engines.spec import Pixels
from engines.tiling.device import LazyRows


class RasterRows(LazyRows):
    """Rows and columns of `box` as an image.  A row is read once, and held until no window needs it.

    wanted: what of the file somebody looks at.  keep_nodata: also at what it hides.
    largest: of the values of a 16-bit file so far.
    """

    def __init__(self, file: RasterFile, box: Box, pixels: Pixels, wanted: Box, keep_nodata: bool) -> None:
        self._file, self._box, self._pixels = file, box, pixels
        self._wanted, self._keep = wanted, keep_nodata
        self.shape = (box[1] - box[0], box[3] - box[2], pixels.count)
        self._start = self._hidden_from = 0
        self._held = self._buffer = np.empty((0, *self.shape[1:]), np.uint8)
        self._hidden: NDArray[np.bool_] = np.empty((0, self.shape[1]), np.bool_)
        self.largest = 0
        self._rows = file.rows_at_once(self.shape[1])

    def __getitem__(self, rows: slice) -> UInt8:
        start, stop, _ = rows.indices(self.shape[0])
        end = self._start + len(self._held)
        if not self._start <= start <= end:  # to explain an error
            again = np.empty((stop - start, *self.shape[1:]), np.uint8)
            self._read(start, stop, again)
            return again
        if stop > end:
            kept, ahead = self._held[start - self._start :], self._whole_blocks(stop)
            if len(self._buffer) < ahead - start:
                self._buffer = np.empty((ahead - start, *self.shape[1:]), np.uint8)
            self._buffer[: len(kept)] = kept
            self._held, self._start = self._buffer[: ahead - start], start
            self._hidden = np.concatenate([self._hidden, self._read(end, ahead, self._held[len(kept) :])])
        return self._held[start - self._start :][: stop - start]

    def blank(self, top: int, left: int, height: int, width: int) -> bool:
        """Whether nobody looks at a part of the rows at hand, or it is hidden as a whole."""
        first_row, first_column = self._box[0] + top, self._box[2] + left
        row0, row1, column0, column1 = self._wanted
        if not (row0 - height < first_row < row1 and column0 - width < first_column < column1):
            return True
        if self._keep:
            return False
        rows = self._hidden[top - self._hidden_from : top - self._hidden_from + height]
        return bool(rows[:, left : left + width].all())

    def hidden(self, rows: tuple[int, int]) -> NDArray[np.bool_]:
        """(h, W): where labels are those of nothing.  Rows that come before are not asked for again."""
        self._hidden = self._hidden[rows[0] - self._hidden_from :]
        self._hidden_from = rows[0]
        found = self._hidden[: rows[1] - rows[0]]
        return np.zeros_like(found) if self._keep else found

    def note(self) -> str:
        """What the user should hear about how it was read, or ""."""
        return too_dark(self.largest, self._file.path) if self._pixels.scale is None else ""

    def _whole_blocks(self, stop: int) -> int:
        """Up to where to read, so that none is decoded twice where that matters."""
        if self._rows == FEW_ROWS:
            return stop
        first = self._box[0]
        return min(-(-(first + stop) // self._rows) * self._rows - first, self.shape[0])

    def _read(self, start: int, stop: int, pixels: UInt8) -> NDArray[np.bool_]:
        """Fills `pixels`; returns where there are none."""
        missing = np.empty(pixels.shape[:2], np.bool_)
        for row in range(0, stop - start, self._rows):
            part = slice(row, row + self._rows)
            self._fill(start + row, pixels[part], missing[part])
        return missing

    def _fill(self, start: int, pixels: UInt8, missing: NDArray[np.bool_]) -> None:
        file = self._file
        first = self._box[0] + start
        box = (first, first + len(pixels), *self._box[2:])
        values = file.read(box, self._pixels.bands)
        missing[:] = file.is_nodata(values, self._pixels.bands)
        nothing = missing.all()
        masked = file.hidden(box)
        if masked is not None:
            missing |= masked
        if file.colours is not None:
            values = file.colours[values[:, :, 0]]
        if values.dtype.kind in "iu" and values.dtype != np.uint8:
            self.largest = max(self.largest, int(values.max(initial=0, where=~missing[:, :, None])))
        if values.dtype.kind == "f":
            missing |= np.isnan(values).any(2)
        if self._pixels.scale is None and values.dtype not in (np.uint8, np.uint16) and missing.all():
            pixels[:] = 0  # its values may be any, and where there is data they will be refused
        else:
            # Of a sparse raster most rows are the same nothing: one of them is converted.
            seen, wanted = values[:1] if nothing else values, Pixels(self._pixels.count, scale=self._pixels.scale)
            pixels[:] = picture_of(seen, wanted, file.path, file.nodata).pixels
