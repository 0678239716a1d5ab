"""What all images of a device of views share: the engine and its kernels, which views, and where they are made."""

from __future__ import annotations

from functools import lru_cache

from engines.contract import UInt8
from engines.gpu.host_copies import DTYPES
from engines.gpu.launcher import Launcher
from engines.gpu.views.launches import Logits
from engines.gpu.views.layout import ViewsPlan, WindowLogits
from engines.images.resize import resample
from engines.spec import OPENCV
from engines.tiling.device import Confidence, Timings
from engines.tiling.placement import Tiling
from engines.views.schedule import Schedule
from engines.views.views import ImageViews


class Setup:
    """made_here: whether the GPU resizes images, with the filter of OpenCV; by Pillow's the host does, and views are
    uploaded.  timings: of all images so far.  threads: of the host.
    """

    def __init__(self, launcher: Launcher, views: ImageViews, timings: Timings, threads: int) -> None:
        self.launcher, self.views, self.timings, self._threads = launcher, views, timings, threads
        self.made_here = launcher.spec.resample == OPENCV
        _, self.classes, *low = launcher.output.shape
        self.low = low[0], low[1]

    def schedule(self, height: int, width: int) -> Schedule:
        return _schedule(self.views, self.launcher.tiling, height, width)

    def plan(self, size: tuple[int, int], pixel: int, confidence: Confidence) -> ViewsPlan:
        launcher, schedule = self.launcher, self.schedule(*size)
        shared, view = launcher.gpu.info.integrated, schedule.views[0]
        one = not self.views.scales and (view.height, view.width) == launcher.tiling.labelled
        return ViewsPlan.of(
            schedule, size=size, pixel=pixel, channels=len(launcher.spec.mean), confidence=launcher.given(confidence),
            windows=WindowLogits(launcher.run.ahead, launcher.run.window_bytes, classes=self.classes, low=self.low),
            direct=launcher.spec.direct and one, made_here=self.made_here, copied=not shared or launcher.staged,
            shared=shared,
        )  # fmt: skip

    def logits(self, direct: bool) -> Logits:
        """Of every window, as they are merged."""
        dtype = DTYPES[self.launcher.output.dtype].name
        return Logits(dtype, self.classes, self.low, None if direct else self.launcher.weights)

    def resampled(self, image: UInt8, size: tuple[int, int]) -> UInt8:
        """By the host."""
        return resample(image, size, self.launcher.spec.resample, self._threads)

    def too_large(self, plan: ViewsPlan) -> str:
        """Why there is no memory for a plan."""
        (height, width), count = plan.size, len(plan.schedule.views)
        free = self.launcher.gpu.free_memory() / 2**20
        return (
            f"views: got {count} view{'s' if count > 1 else ''} of {width}x{height}, which take "
            f"{plan.device / 2**20:.0f} MiB on the GPU, {plan.logits / 2**20:.0f} of them logits of {self.classes} "
            f"classes, expected {free:.0f} MiB at most; give fewer or smaller --scales, --no-flip or a smaller --resize"
        )


@lru_cache(maxsize=16)
def _schedule(views: ImageViews, tiling: Tiling, height: int, width: int) -> Schedule:
    return Schedule.of(height, views.of(height, width, tiling.labelled), tiling)
