"""The kernels' benchmark, with the emulated kernels for a GPU: that it runs, and that --check finds a difference."""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import kernels as benchmark
from engines.errors import DeployError
from engines.gpu.info import GpuInfo
from engines.gpu.kernels import Launch
from engines.tiling.tail import TailShape
from tests.engines.gpu.emulated import Emulated, build


class FakeGpu:
    """`CudaGpu`, as far as the benchmark uses it.  Its clock counts what was started."""

    info = GpuInfo("Emulated", (9, 0), 13000, 2**30, False)
    main = "main"

    def __init__(self, machine: Emulated, refuse: type[DeployError] | None, wrong: bool) -> None:
        self.machine, self.refuse, self.wrong = machine, refuse, wrong
        self.started = self.graphs = 0

    def load(self, cubin: bytes) -> str:
        return "kernels"

    def allocate(self, size: int) -> Any:
        address = self.machine.put(np.zeros(size, np.uint8))
        return types.SimpleNamespace(address=address, free=lambda: None)

    def upload(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        self.machine.take(array, address)
        if self.wrong and array.dtype == np.uint8:
            array.view(np.uint8).reshape(-1)[0] ^= 1

    def launch(self, kernels: str, launch: Launch) -> None:
        self.started += 1
        self.machine.launch(launch)

    def copy(self, target: int, source: int, size: int) -> None:
        self.started += 1

    def synchronize(self) -> None: ...

    def event(self, timed: bool = False) -> dict[str, int]:
        return {}

    def mark(self, event: dict[str, int], stream: str) -> None:
        event["at"] = self.started

    def finish(self, event: dict[str, int]) -> None: ...

    def seconds(self, start: dict[str, int], end: dict[str, int]) -> float:
        return 1e-6 * (end["at"] - start["at"])

    def record(self, work: Callable[[], None]) -> Any:
        if self.refuse:
            raise self.refuse("no")
        self.graphs += 1
        return types.SimpleNamespace(work=work, free=self._forget)

    def replay(self, recorded: Any) -> None:
        recorded.work()

    def _forget(self) -> None:
        self.graphs -= 1


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return Emulated(build(tmp_path_factory.mktemp("emulated") / "emulated.so"))


def _install(monkeypatch: pytest.MonkeyPatch, emulated: Emulated, refuse: bool = False, wrong: bool = False) -> None:
    class CaptureRefusedError(DeployError):
        pass

    @contextmanager
    def open_gpu() -> Iterator[FakeGpu]:
        gpu = FakeGpu(emulated, CaptureRefusedError if refuse else None, wrong)
        yield gpu
        assert gpu.graphs == 0

    for name, content in (("context", {"open_gpu": open_gpu}), ("graph", {"CaptureRefusedError": CaptureRefusedError})):
        module = types.ModuleType(f"engines.gpu.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(benchmark, "compile_kernels", lambda sm: b"")


@pytest.mark.parametrize("wrong", [False, True])
def test_check_fails_on_any_difference(
    monkeypatch: pytest.MonkeyPatch, emulated: Emulated, wrong: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    _install(monkeypatch, emulated, wrong=wrong)
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--check"])
    assert stopped.value.code == wrong
    text = capsys.readouterr().out
    assert ("DIFFERS in 1 values: stitch float16" in text) == wrong
    assert text.endswith("differ from the C core\n")


@pytest.mark.parametrize("refuse", [False, True])
def test_times_are_printed_and_written(
    monkeypatch: pytest.MonkeyPatch,
    emulated: Emulated,
    refuse: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _install(monkeypatch, emulated, refuse=refuse)
    small = {"size": (32, 64), "window": 32}
    works = [
        benchmark.gather_work("float16", **small),
        benchmark.scatter_work("float16", 2, 3, 8),
        benchmark.stitch_work("gaussian", "float32", confidence=True, blend="gaussian", **small),
        benchmark.tail_work("small", "float16", TailShape(9, 66, 8, 36, 9, ((5, 33),))),
    ]
    monkeypatch.setattr(benchmark, "works", lambda: works)
    monkeypatch.setattr(benchmark, "COLD_BYTES", 2**17)
    benchmark.main(["--rounds", "2", "--json", str(tmp_path / "times.json")])
    report = json.loads((tmp_path / "times.json").read_text())
    assert [(t["kernel"], t["cache"], t["kernel_us"], t["ratio"], t["graph"]) for t in report["timings"]] == [
        (kernel, cache, 1.0, 1.0, not refuse)
        for kernel in (
            "tile_gather_f16",
            "tile_scatter_f16",
            "tile_stitch_whole_weighted_confidence_f32",
            "tail_to_12_f16",
        )
        for cache in ("cached", "cold")
    ]
    out = capsys.readouterr()
    assert "stitch gaussian float32" in out.out
    assert ("no graphs" in out.err) == refuse


def test_the_frame_takes_the_fast_kernel() -> None:
    machine = types.SimpleNamespace(put=lambda array: 256, room=lambda size: 256)
    found = {work.name: work.make(machine, 256, [256, 256]).kernel for work in benchmark.works()}  # type: ignore[arg-type]
    assert found["stitch 1/4 float16"] == "tile_stitch_quarter_f16"
    assert found["stitch 1/4, 2050x1027 float16"] == "tile_stitch_whole_f16"
    assert found["stitch full resolution float32"] == "tile_stitch_any_f32"
