"""What goes wrong on a GPU, and what is left then.  Run by tests/engines/gpu/test_cuda.py, with the fake driver."""

from __future__ import annotations

import ctypes
import importlib.util
import threading
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.contract import Tensor
from engines.errors import DeployError, NotFiniteError
from engines.gpu import context as cuda
from engines.gpu import driver
from engines.gpu.context import CudaGpu, GpuMemoryError, open_gpu
from engines.gpu.device import CudaDevice
from engines.gpu.frames import CudaFrame
from engines.gpu.kernels import MAX_WINDOWS, Launch
from engines.tiling.placement import Tiling
from tests.engines.gpu.fake_cuda import support
from tests.engines.gpu.fake_cuda.support import CUBIN, SPEC, Bright, Engine, configure, image, on_host, opened, same

TILING = Tiling(64, 96, 48, 64)


def test_no_memory_left_says_how_much_was_wanted() -> None:
    configure(memory=400_000)
    engine = Engine(TILING)
    with opened(engine, TILING) as (segmenter, _, _):
        with pytest.raises(GpuMemoryError, match=r"wanted \d+\.\d MiB of GPU memory, 0\.\d MiB are free; .*--tile"):
            segmenter.segment(image(64, 4000))
        for _ in range(3):  # what had been taken is free again
            assert same(segmenter.segment(image(64, 96)), on_host(engine, TILING).segment(image(64, 96)))


def test_memory_of_other_sizes_makes_room() -> None:
    configure(memory=1_200_000)  # room for one size
    engine = Engine(TILING)
    with opened(engine, TILING) as (segmenter, device, _):
        for size in ((150, 333), (333, 150), (200, 240), (150, 333)):
            assert same(segmenter.segment(image(*size)), on_host(engine, TILING).segment(image(*size)))
            assert isinstance(device._frame, CudaFrame)


def test_an_engine_that_does_not_fit_is_told_before_anything_runs() -> None:
    configure(memory=50_000)
    with open_gpu() as gpu, pytest.raises(GpuMemoryError, match="no memory left"):
        CudaDevice(gpu, Engine(TILING), SPEC, TILING, CUBIN)


@pytest.mark.parametrize("runs", [0, 3, 20, 33])
@pytest.mark.parametrize("lazy", [0, 1])
def test_logits_that_are_no_numbers_are_refused_as_on_the_host(runs: int, lazy: int) -> None:
    configure(lazy=lazy)
    engine = Engine(TILING)
    host = on_host(Engine(TILING), TILING)
    with opened(engine, TILING) as (segmenter, _, _):
        engine.poison = runs
        with pytest.raises(NotFiniteError, match="the engine's logits are NaN or infinite, of a window that is finite"):
            list(map(segmenter.segment, [image(150, 333, seed) for seed in range(5)]))
        with pytest.raises(DeployError, match="NaN"):
            list(segmenter.bands(image(150, 333)))
        engine.poison = -1
        for seed in range(5):
            assert same(segmenter.segment(image(150, 333, seed)), host.segment(image(150, 333, seed)))


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize("lazy", [0, 1])
@pytest.mark.parametrize("spoiled", range(4))
def test_no_numbers_in_one_frame_are_told_of_that_frame_alone(spoiled: int, integrated: int, lazy: int) -> None:
    """A status of before must not stand for now."""
    configure(lazy=lazy, integrated=integrated)
    engine, right = Engine(TILING), on_host(Engine(TILING), TILING)
    runs = len(TILING.placements(150, 333)[0]) * len(TILING.placements(150, 333)[1])
    with opened(engine, TILING) as (segmenter, device, _):
        for seed in range(4):
            picture = image(150, 333, seed)
            engine.poison = runs // 2 if seed == spoiled else -1
            if seed == spoiled:
                with pytest.raises(NotFiniteError):
                    segmenter.segment(picture)
            else:
                assert same(segmenter.segment(picture), right.segment(picture))
            engine.poison = -1
        assert device.graph == "on"


def test_the_window_is_named_where_the_picture_is_the_reason() -> None:
    class Overflowing(Engine):
        def logits(self, windows: np.ndarray) -> np.ndarray:
            return np.where(super().logits(windows) > 100, np.inf, super().logits(windows)).astype(np.float32)

        def run(self, windows: np.ndarray) -> np.ndarray:
            return self.logits(windows)

    engine = Overflowing(TILING)
    engine._mix[:] = np.abs(engine._mix) * 20
    dark = np.zeros((150, 333, 3), np.uint8)
    bright = dark.copy()
    bright[114:140, 200:230] = 255
    with opened(engine, TILING) as (segmenter, _, _):
        for picture in (dark, dark, bright, dark):
            if picture is bright:
                with pytest.raises(NotFiniteError, match=r"row 3, column 3 \(pixels x 128 to 224, y 86 to 150"):
                    segmenter.segment(picture)
            else:
                segmenter.segment(picture)


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize("lazy", [0, 1])
def test_a_graph_that_does_not_run_is_not_the_mask_of_the_frame_before(
    integrated: int, lazy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(lazy=lazy, integrated=integrated)
    engine = Engine(TILING)
    with opened(engine, TILING) as (segmenter, _, gpu):
        for seed in range(3):
            segmenter.segment(image(150, 333, seed))
        monkeypatch.setattr(type(gpu), "replay", lambda self, recorded, stream: None)
        with pytest.raises(DeployError, match="the GPU did not run what was started"):
            segmenter.segment(image(150, 333, 3))
        monkeypatch.undo()
        right = on_host(engine, TILING).segment(image(150, 333, 4))
        assert same(segmenter.segment(image(150, 333, 4)), right)


def test_an_engine_that_refuses_to_run_leaves_the_frames_free() -> None:
    class Refusing(Engine):
        broken = False

        def enqueue(self, source: int, target: int, stream: int) -> None:
            if self.broken and self.enqueued % 4 == 2:
                self.enqueued += 1
                raise DeployError("engine: the SDK says no")
            super().enqueue(source, target, stream)

    engine = Refusing(TILING, capturable=False)
    with opened(engine, TILING) as (segmenter, _, _):
        for _ in range(3):
            engine.broken = True
            with pytest.raises(DeployError, match="SDK says no"):
                segmenter.segment(image(150, 333))
            engine.broken = False
            assert same(segmenter.segment(image(150, 333)), on_host(Engine(TILING), TILING).segment(image(150, 333)))


@pytest.mark.parametrize("lazy", [0, 1])
def test_no_numbers_in_a_shared_batch_are_told_of_their_image_alone(lazy: int) -> None:
    configure(lazy=lazy)
    engine = Bright(TILING, 8)
    pictures = [image(64, 96, seed) for seed in range(8)]
    pictures[5][:] = 255
    with opened(engine, TILING) as (segmenter, _, _):
        running = [segmenter.start(picture) for picture in pictures]
        for seed, (each, picture) in enumerate(zip(running, pictures, strict=True)):
            if seed == 5:
                with pytest.raises(NotFiniteError):
                    each.mask()
            else:
                assert same(each.mask(), on_host(Engine(TILING), TILING).segment(picture))


def test_a_batch_that_is_refused_is_told_to_every_image_in_it() -> None:
    class Refusing(Engine):
        broken = False

        def enqueue(self, source: int, target: int, stream: int) -> None:
            if self.broken:
                raise DeployError("engine: the SDK says no")
            super().enqueue(source, target, stream)

    engine = Refusing(TILING, 4, capturable=False)
    right = on_host(Engine(TILING), TILING)
    with opened(engine, TILING) as (segmenter, _, _):
        before = segmenter.start(image(64, 96, 1))
        other = segmenter.start(image(64, 96, 2))
        engine.broken = True
        with pytest.raises(DeployError, match="SDK says no"):
            segmenter.start(image(64, 160, 3))
        engine.broken = False
        for waiting in (other, before):
            with pytest.raises(DeployError, match="SDK says no"):
                waiting.mask()
        assert same(segmenter.segment(image(64, 96, 4)), right.segment(image(64, 96, 4)))


@pytest.mark.parametrize(
    ("cubin", "reason"),
    [
        (b"OTHER GPU's kernels", "no kernel image is available.*build the bundle again here"),
        (b"no kernels", r"kernel image is invalid.*runs CUDA 13\.0.*update the driver, or build .* CUDA 13\.0"),
    ],
)
def test_kernels_for_another_gpu_or_driver_are_refused(cubin: bytes, reason: str) -> None:
    with open_gpu() as gpu, pytest.raises(DeployError, match=reason):
        CudaDevice(gpu, Engine(TILING), SPEC, TILING, cubin)


def test_a_kernel_that_is_not_there_is_named() -> None:
    with open_gpu() as gpu:
        launch = Launch("no_kernel", (1, 1, 1), (1, 1, 1), np.zeros((), np.dtype([("a", np.int32)]))[()])
        with pytest.raises(DeployError, match=r"starting kernel no_kernel: .*symbol not found"):
            gpu.launch(gpu.load(CUBIN), launch)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input": Tensor("image", (1, 3, 64, 64), "fp32")}, r"expected \(N, 3, 64, 96\)"),
        ({"input": Tensor("image", (MAX_WINDOWS + 1, 3, 64, 96), "fp32")}, "batch"),
        ({"output": Tensor("logits", (1, 4, 16, 24), "fp32")}, r"expected \(1, 5, h, w\)"),
        ({"output": Tensor("logits", (1, 5, 16, 24), "int8")}, "expected one of fp32, fp16"),
    ],
)
def test_engines_that_do_not_fit_the_bundle_are_refused(change: dict[str, Tensor], reason: str) -> None:
    engine = Engine(TILING)
    vars(engine).update(change)
    with open_gpu() as gpu, pytest.raises(DeployError, match=reason):
        CudaDevice(gpu, engine, SPEC, TILING, CUBIN)


def test_a_context_that_was_current_is_current_again() -> None:
    """As in a process where torch has run: it holds the primary context and leaves it current."""
    library, context = support.driver(), ctypes.c_void_p()
    library.cuInit(0)
    library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    library.cuCtxPushCurrent_v2(context)
    for _ in range(2):
        with opened(Engine(TILING), TILING) as (segmenter, _, _):
            segmenter.segment(image(64, 96))
        assert driver.current_context() == context.value
    driver.pop_context()
    assert driver.current_context() == 0
    library.cuDevicePrimaryCtxRelease_v2(0)


def test_no_driver_and_no_pycuda_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cuda.unavailable() == "GPU: pycuda is not installed; install the CUDA toolkit and run: pip install pycuda"
    with pytest.raises(DeployError, match="pip install pycuda"), open_gpu():
        pass
    monkeypatch.undo()
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-that-is-not-there.so.1")
    driver.library.cache_clear()
    assert "no NVIDIA driver here" in (cuda.unavailable() or "")
    with pytest.raises(DeployError, match="no NVIDIA driver"):
        cuda.gpu_info()
    monkeypatch.undo()
    driver.library.cache_clear()
    configure(devices=0)
    assert "no CUDA-capable device is detected (error 100); look at nvidia-smi" in (cuda.unavailable() or "")
    with pytest.raises(DeployError, match="no CUDA-capable device"), open_gpu():
        pass
    configure()
    assert cuda.unavailable() is None


def test_a_gpu_is_used_in_the_thread_that_opened_it() -> None:
    caught: list[str] = []

    def use(gpu: CudaGpu) -> None:
        with pytest.raises(DeployError, match="opened in another thread") as error:
            gpu.free_memory()
        caught.append(str(error.value))
        with open_gpu() as own:  # which has one of its own
            assert own is not gpu
            own.free_memory()

    with open_gpu() as gpu:
        thread = threading.Thread(target=use, args=(gpu,))
        thread.start()
        thread.join()
        gpu.free_memory()
    assert caught


@pytest.mark.parametrize("closed", [False, True], ids=["never closed", "closed by another thread"])
def test_a_gpu_is_torn_down_in_its_own_thread(closed: bool) -> None:
    """pycuda aborts the process when a thread ends with a context open, and frees nothing in another thread."""
    held: list[tuple[Any, Any]] = []
    ready, over = threading.Event(), threading.Event()

    def work() -> None:
        manager = opened(Engine(TILING, 2), TILING)
        segmenter, device, _ = manager.__enter__()
        segmenter.segment(image(150, 333))
        segmenter.start(image(150, 333))
        held.append((manager, device))
        ready.set()
        over.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if closed:
            held[0][0].__exit__(None, None, None)
        assert support.alive()[0]["contexts"] == 1
        over.set()
        thread.join()
        assert support.alive()[0] == {}
        held.clear()


def test_a_frame_may_be_dropped_by_another_thread() -> None:
    """As by the one that writes masks: pycuda frees nothing there, and warns."""
    with opened(Engine(TILING, 2), TILING) as (segmenter, _, _), warnings.catch_warnings():
        warnings.simplefilter("error")
        for played in (True, False):
            held = [segmenter.start(image(150, 333)) for _ in range(3)]
            for each in held if played else ():
                each.mask()
            thread = threading.Thread(target=held.clear)
            thread.start()
            thread.join()
        segmenter.segment(image(150, 333))


def test_the_tiling_may_blend() -> None:
    """The weights are the device's own, and freed with it."""
    for blend in ("hann", "uniform"):
        with opened(Engine(TILING), replace(TILING, blend=blend)):
            assert support.alive()[0]["device"] == (5 if blend == "hann" else 3)
