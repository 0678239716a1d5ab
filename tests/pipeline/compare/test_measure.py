"""What `compare` takes from its workers: stand-ins that answer as one on a GPU does, and as one on the host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.errors import DeployError
from engines.measure.worker import FrameTimes, OnDevice, Opened
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from pipeline.compare import measure as module
from pipeline.compare.measure import Measured, measure

IMAGE = np.zeros((16, 24, 3), np.uint8)


class _Worker:
    """The bundle's name is the device.  A frame of the GPU is 8 ms of everything without the parts, 10 ms with them."""

    made: dict[str, _Worker] = {}  # noqa: RUF012

    def __init__(self, bundle: Path, threads: int) -> None:
        self.name, self.parts = bundle.name, False
        self.log: list[bool] = []
        self.opened = Opened("fp32", "b", "s", self.name, 1, 1.0)
        _Worker.made[self.name] = self

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def put(self, image: Any) -> None:
        pass

    def frame(self) -> FrameTimes:
        self.log.append(self.parts)
        if self.name == "dies" and self.parts:
            raise DeployError("the GPU was lost")
        if self.name == "host":
            return FrameTimes(100.0, 5.0, 90.0, 5.0, 1)
        return FrameTimes(10.0, 1.0, 7.0, 1.5, 1) if self.parts else FrameTimes(8.0, 0.0, 8.0, 0.0, 1)

    def labels(self) -> Any:
        return IMAGE[..., 0]

    def device(self) -> OnDevice:
        return OnDevice("host" if self.name == "host" else "cuda", 1, "", "")

    def time_parts(self, on: bool) -> None:
        self.parts = on

    def peak_bytes(self) -> int:
        return 1

    def executed(self) -> dict[str, float]:
        return {}


def test_the_engine_of_a_gpu_is_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Worker", _Worker)
    monkeypatch.setattr(module, "SETTLE_S", 0)

    class Images:
        labelled, classes = False, ()

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return SimpleNamespace(name="a.png", image=IMAGE, truth=None)

        def ahead(self) -> Any:
            return iter([self[0]])

    spec = ModelSpec("test", "", ("a", "b"), ((0, 0, 0), (1, 1, 1)))
    bundles = {name: Path(name) for name in ("host", "gpu", "dies")}
    found = measure(bundles, Images(), spec, Tiling(16, 24, 16, 24), 3, 1)  # type: ignore[arg-type]
    assert found["dies"] == "the GPU was lost"
    host, gpu = found["host"], found["gpu"]
    assert isinstance(host, Measured)
    assert isinstance(gpu, Measured)
    parts = [(each.timing.gather.p50, each.timing.engine.p50, each.timing.stitch.p50) for each in (host, gpu)]
    assert parts == [(5.0, 90.0, 5.0), (1.0, 7.0, 1.5)]
    assert (gpu.timing.frame.p50, gpu.timing.engine.count) == (8.0, 3)  # the frame is that of the graph
    assert _Worker.made["host"].log == [False] * 4  # one for its labels
    assert _Worker.made["gpu"].log == [False] * 4 + [True] * 4
