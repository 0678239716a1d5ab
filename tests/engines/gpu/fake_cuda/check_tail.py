"""An engine that ends in maps, with the decoder's tail on the GPU: masks bit by bit those of the host.

Run by test_cuda.py, with the fake driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np
import pytest

from engines.contract import Tensor, pack, packed
from engines.errors import DeployError
from engines.gpu.context import open_gpu
from engines.gpu.device import CudaDevice
from engines.gpu.tail import GpuTail
from engines.proof.replay import replayed
from engines.segmenter import Segmenter
from engines.tiling.host import HostDevice
from engines.tiling.placement import Tiling
from engines.tiling.tail import HostTail, Tail, TailShape
from tests.engines.gpu.fake_cuda.support import CUBIN, Engine, configure, image, same

TILING = Tiling(64, 96, 48, 64)
SHAPE = TailShape(16, 24, 4, 8, 5, ((8, 12), (3, 5)))


class MapsEngine(Engine):
    """The support's engine, whose points become the maps that a tail takes."""

    def __init__(self, batch: int = 1, dtype: str = "fp32") -> None:
        super().__init__(TILING, batch, dtype=dtype)
        _, total = packed([batch * prod(size) for size in SHAPE.outputs])
        self.output = Tensor("maps", (total,), dtype)

    def logits(self, windows: np.ndarray) -> np.ndarray:
        points = super().logits(windows).astype(np.float32)  # (N, 5, 16, 24)
        maps = []
        for rows, columns, channels in SHAPE.outputs:
            some = points[:, :, :: -(-16 // rows), :: -(-24 // columns)][:, :, :rows, :columns]
            each = some.transpose(0, 2, 3, 1)  # a window's maps are its own, wherever in a batch it lies
            maps.append(np.stack([np.resize(points, (rows, columns, channels)) for points in each]))
        return pack(maps).astype(self._type)


def _tail() -> Tail:
    rng = np.random.default_rng(2)
    return Tail.of(SHAPE, *(rng.normal(size=size).astype(np.float32) for size in ((8, 4), (8,), (5, 8), (5,))))


def _on_host(engine: MapsEngine) -> Segmenter:
    session = HostTail(engine, _tail(), 1)
    return Segmenter(HostDevice(session, engine.spec, TILING, 1, engine.input.shape[0]))


@contextmanager
def _opened(engine: MapsEngine) -> Iterator[tuple[Segmenter, CudaDevice]]:
    with (
        open_gpu() as gpu,
        GpuTail(gpu, engine, _tail(), CUBIN) as session,
        CudaDevice(gpu, session, engine.spec, TILING, CUBIN) as device,
    ):
        yield Segmenter(device), device


@pytest.mark.parametrize(("lazy", "contexts"), [(0, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_masks_equal_the_host_and_frames_are_recorded(
    lazy: int, contexts: int, integrated: int, dtype: str, batch: int
) -> None:  # fmt: skip
    configure(lazy=lazy, integrated=integrated)
    engine = MapsEngine(batch, dtype)
    host = _on_host(engine)
    with _opened(engine) as (segmenter, device):
        device.use_contexts(contexts)
        for seed in range(4):
            picture = image(150, 333, seed)
            assert same(segmenter.segment(picture, True), host.segment(picture, True))
        assert (device.graph, device.contexts) == ("on", str(contexts))
        assert [step.step for step in replayed(image(100, 200), segmenter)] == ["replayed frame"]
        labels = segmenter.segment(picture).labels
    assert len(np.unique(labels)) > 2


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_session_alone_and_the_engines_time(dtype: str) -> None:
    engine = MapsEngine(2, dtype)
    with _opened(engine) as (segmenter, device):
        windows = np.random.default_rng(0).normal(size=engine.input.shape).astype(np.float32)
        got, expected = segmenter.session.run(windows), HostTail(engine, _tail()).run(windows)
        assert got.tobytes() == expected.tobytes()
        assert segmenter.session.output == Tensor("logits", (2, 5, 16, 24), "fp32")  # type: ignore[attr-defined]
        assert device.engine_ms(image(64, 96)) > 0


def test_nan_of_the_engine_is_found() -> None:
    engine = MapsEngine()
    engine.poison = 0
    with _opened(engine) as (segmenter, _), pytest.raises(DeployError, match="NaN or infinite"):
        segmenter.segment(image(64, 96))


def test_maps_of_another_size_are_refused_and_nothing_stays() -> None:
    engine = MapsEngine()
    engine.output = Tensor("maps", (7,), "fp32")
    with pytest.raises(DeployError, match=r"got output \(7,\) fp32, expected the maps"), _opened(engine):
        pass


def test_a_gpu_without_memory_for_the_maps_says_so_and_nothing_stays() -> None:
    configure(memory=20_000)
    with pytest.raises(DeployError, match="memory"), _opened(MapsEngine()):
        pass
