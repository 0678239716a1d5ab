"""Several views of an image on a GPU, from its pixels to its labels."""

from __future__ import annotations

from collections.abc import Callable

from engines.errors import DeployError
from engines.gpu.device import CudaDevice
from engines.gpu.pool import IN_FLIGHT
from engines.gpu.views.frame import CudaViewsFrame, CudaViewsStrips
from engines.gpu.views.launches import MERGE_KERNEL
from engines.gpu.views.setup import Setup
from engines.tiling.device import Confidence
from engines.views.device import DeviceOfViews
from engines.views.views import ImageViews


class CudaViews(DeviceOfViews):
    """Raises DeployError where the bundle's kernels are older than this."""

    def __init__(self, inner: CudaDevice, views: ImageViews, threads: int = 0) -> None:
        super().__init__(inner, views, threads)
        self._cuda, self._in_flight = inner, 1
        self._setup = Setup(inner.launcher, views, self.timings, threads)
        if not inner.gpu.has(inner.launcher.code, MERGE_KERNEL):
            raise DeployError(
                "views: the bundle's kernels are of a version that merged views on the host; build it again here: "
                "deploy.py build-engine BUNDLE -o BUNDLE"
            )

    @property
    def graph(self) -> str:
        return self._cuda.graph

    @property
    def contexts(self) -> str:
        return self._cuda.contexts

    @property
    def transfers(self) -> str:
        return self._cuda.transfers

    @property
    def in_flight(self) -> int:
        """For images like the last one: two, where the memory of both fits."""
        return self._in_flight

    @property
    def parts(self) -> bool:
        return self._cuda.parts

    @parts.setter
    def parts(self, value: bool) -> None:
        self._cuda.parts = value

    @property
    def on_window(self) -> Callable[[int, int], None] | None:
        return self._cuda.on_window

    @on_window.setter
    def on_window(self, value: Callable[[int, int], None] | None) -> None:
        self._cuda.on_window = value

    def whole_frame(self, height: int, width: int, confidence: Confidence) -> CudaViewsFrame:
        bands = len(self.spec.mean)
        plan = self._setup.plan((height, width), 4 if bands == 3 else bands, confidence)
        self._in_flight = max(1, min(IN_FLIGHT, self._cuda.launcher.most(plan)))
        return CudaViewsFrame(self._setup, (height, width), confidence)

    def strips(self, height: int, width: int, confidence: Confidence) -> CudaViewsStrips:
        return CudaViewsStrips(self._setup, (height, width), confidence)
