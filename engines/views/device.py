"""Several views of an image in place of the image: views, windows and merging as one `Device`.

`ViewsDevice` is that of the host; engines/gpu/views has that of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engines.contract import Float32, Session, UInt8
from engines.errors import DeployError
from engines.images.resize import resample
from engines.tiling.device import Band, Confidence, Device, LazyRows, Mask, Timings
from engines.tiling.frame import FrameOfStrips
from engines.tiling.placement import WindowRow
from engines.views.schedule import Schedule
from engines.views.store import InFile
from engines.views.views import ImageViews, View
from engines.views.work import ViewTimes, ViewWork, mirrored


class DeviceOfViews:
    """What `inner` holds, used on several views of each image.  Closed with `inner`.

    threads: of the host; 0 means all cores of this process.  timings: of all images so far; resizing counts as
    gathering.
    """

    def __init__(self, inner: Device, views: ImageViews, threads: int = 0) -> None:
        self.inner, self.views, self.threads = inner, views, threads
        self.spec, self.tiling, self.batch, self.timings = inner.spec, inner.tiling, inner.batch, Timings()
        self.window = self.tiling.labelled

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def memory(self) -> int | None:
        return self.inner.memory

    @property
    def session(self) -> Session:
        return self.inner.session

    def held_logits(self) -> None:
        return None

    def first_window(self, image: UInt8) -> Float32:
        return self.inner.first_window(self.view_of(image, self._views_of(image)[0]))

    def engine_ms(self, image: UInt8) -> float:
        return self.inner.engine_ms(self.view_of(image, self._views_of(image)[0]))

    def view_of(self, image: UInt8, view: View) -> UInt8:
        """The view's own pixels."""
        return mirrored(resample(image, (view.height, view.width), self.spec.resample, self.threads), view)

    def _views_of(self, image: UInt8) -> tuple[View, ...]:
        return self.views.of(image.shape[0], image.shape[1], self.window)

    def placed(self, image: UInt8) -> list[tuple[UInt8, Sequence[WindowRow]]]:
        """Each view of an image with its windows."""
        views = self._views_of(image)
        return [(self.view_of(image, view), self.tiling.window_rows(view.height, view.width)) for view in views]


class ViewsDevice(DeviceOfViews):
    """Windows are gathered, and views merged, in the C core; reading and writing of logits counts as stitching.

    spare: see `ViewWork`.
    """

    in_flight = 1
    parts = True
    graph = transfers = contexts = ""

    def __init__(self, inner: Device, views: ImageViews, threads: int = 0) -> None:
        super().__init__(inner, views, threads)
        self.on_window: Callable[[int, int], None] | None = None
        self.spare: list[InFile] = []

    def whole_frame(self, height: int, width: int, confidence: Confidence) -> ViewsFrame:
        return ViewsFrame(self, height, width, confidence)

    def strips(self, height: int, width: int, confidence: Confidence) -> ViewsStrips:
        return ViewsStrips(self, height, width, confidence)


class ViewsFrame(FrameOfStrips["ViewsStrips"]):
    """An image of (height, width) pixels.  times: of each view."""

    def __init__(self, device: ViewsDevice, height: int, width: int, confidence: Confidence) -> None:
        super().__init__(
            height, width, confidence, lambda mask: ViewsStrips(device, height, width, confidence, into=mask)
        )
        self.times: tuple[ViewTimes, ...] = self._strips.times


class ViewsStrips:
    """Runs as it is told to: `advance` returns when its rows are final in all views.

    steps: the rows that are finished together; their windows are those of the views, and not listed.
    into: the mask of the whole image, which the bands are then parts of; None for arrays of their own.
    """

    def __init__(
        self, device: ViewsDevice, height: int, width: int, confidence: Confidence, into: Mask | None = None
    ) -> None:  # fmt: skip
        self._device, self._size, self._confidence, self._into = device, (height, width), confidence, into
        self._schedule = Schedule.of(height, device.views.of(height, width, device.window), device.tiling)
        self.steps = [
            WindowRow(index, top=turn.rows[0], lefts=(), rows=turn.rows, held=range(0))
            for index, turn in enumerate(self._schedule.turns)
        ]
        self.times = tuple(ViewTimes(view) for view in self._schedule.views)
        self._work = ViewWork(
            device.inner, device.views, self._schedule, times=self.times, timings=device.timings,
            threads=device.threads, spare=device.spare,
        )  # fmt: skip
        self._band: Band | None = None

    def put(self, image: UInt8 | LazyRows) -> None:
        if isinstance(image, LazyRows):
            raise DeployError("views: got an image whose rows are read as they are needed, expected one in memory")
        self._work.image = image

    def band(self, index: int) -> Band:
        assert self._band is not None
        assert self._band.row0 == self.steps[index].rows[0]
        return self._band

    def advance(self, index: int) -> None:
        row0, row1 = self.steps[index].rows
        if self._into is None:
            labels = np.empty((row1 - row0, self._size[1]), np.uint8)
            certainty = np.empty(labels.shape, np.float32) if self._confidence else None
        else:
            labels = self._into.labels[row0:row1]
            certainty = None if self._into.confidence is None else self._into.confidence[row0:row1]
        self._work.turn(index, labels, certainty, self._device.on_window)
        self._band = Band(row0, row1, labels, certainty)
