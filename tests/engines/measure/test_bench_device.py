"""What `bench` reports beyond latency: frames in flight, energy, the parts on a GPU, and the conditions.

No GPU is needed: the host's device stands for one that keeps two frames under way and splits them only when asked.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import Bundle
from engines.measure import bench as module
from engines.measure.bench import bench
from engines.measure.conditions import conditions, say
from engines.measure.power import Meter, NoMeter
from engines.measure.worker import Opened, Worker, _Served
from engines.segmenter import Segmenter, open_segmenter
from engines.tiling.device import Mask
from engines.tiling.host import HostDevice, HostFrame

TREES = Path(__file__).parents[1] / "machine" / "trees"
IMAGE = np.random.default_rng(1).integers(0, 256, (100, 170, 3), np.uint8)


def test_energy_is_that_of_the_frames_in_flight(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that gains 12 J from its first reading to its last, over as many frames as there are rounds."""
    readings = iter([100.0, 112.0])
    monkeypatch.setattr(module, "ENERGY_S", 0)
    monkeypatch.setattr(module, "find_meter", lambda gpu: Meter("a meter", lambda: next(readings), counter=True))
    report = bench(tiny_bundle, IMAGE, None, rounds=3, warmup=1, threads=1)
    assert report.throughput.frames == 3
    assert report.throughput.joules_per_frame == pytest.approx(4)
    assert report.throughput.in_flight == 1
    assert report.throughput.energy.watts == pytest.approx(12 / report.throughput.energy.seconds)
    assert "4 J a frame" in str(report)
    assert str(report).count("(a meter)") == 1
    body = json.loads(json.dumps(report.to_json()))
    assert body["throughput"]["joules_per_frame"] == pytest.approx(4)
    assert body["throughput"]["energy"]["source"] == "a meter"
    assert body["throughput"]["frames_per_second"] == pytest.approx(3 / report.throughput.seconds, rel=1e-3)


def test_energy_is_measured_for_long_enough(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENERGY_S", 0.2)
    monkeypatch.setattr(module, "find_meter", lambda gpu: Meter("10 W", lambda: 10_000.0))
    report = bench(tiny_bundle, IMAGE, None, rounds=1, warmup=1, threads=1)
    fastest = report.frame_ms.fastest
    assert report.throughput.frames == max(1, int(np.ceil(200 / fastest)))
    assert report.throughput.energy.watts == pytest.approx(10)


def test_without_a_meter_the_report_says_why(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_meter", lambda gpu: NoMeter("no meter here"))
    report = bench(tiny_bundle, IMAGE, None, rounds=2, warmup=1, threads=1)
    assert "energy    not measured: no meter here" in str(report)
    assert report.to_json()["throughput"]["joules_per_frame"] is None
    force = report.settings
    assert (force["runs_on"], force["in_flight"], force["batch"], force["graph"]) == ("host", 1, 1, "")
    assert force["before"]["governor"] == force["governor"]


def test_on_a_gpu_the_parts_are_timed_apart(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency and throughput with the graph, and only then the parts; afterwards the device is as before."""
    asked: list[bool] = []
    monkeypatch.setattr(module, "find_meter", lambda gpu: asked.append(gpu) or NoMeter("none"))
    monkeypatch.setattr(module, "conditions", lambda gpu: {"gpu_mhz": 1755.0, "gpu_max_mhz": 1980.0})
    with _local_worker(tiny_bundle) as worker:
        monkeypatch.setattr(module, "Worker", lambda bundle, threads, host_code: worker)
        report = bench(tiny_bundle, IMAGE, None, rounds=3, warmup=1, threads=1)
        device = worker.device_
        # 1 + 3 for latency, 2 x 2 to record the graphs, 3 in flight; then 1 + 3 with the parts
        assert device.log == [False] * (4 + 4 + 3) + [True] * 4
        assert device.most == 2
        assert not device.parts
    assert asked == [True]
    assert report.gather_ms.count == report.frame_ms.count == 3
    assert report.gather_ms.fastest > 0  # with the parts off the stand-in counts everything as engine
    assert report.stitch_ms.fastest > 0
    assert report.throughput.in_flight == 2
    text = str(report)
    assert text.splitlines()[-1].endswith("at most, the process as a whole; 512 MB of the GPU in use, by all programs")
    assert "device    runs on cuda, batch 1, graph on, execution contexts 2, transfers pinned" in text
    assert text.count("gpu 1755 of up to 1980 MHz") == 2


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ("orin-nano-super-jp6.2.1", "power mode 25W (1), gpu 306 of 306 to 918 MHz, clocks not pinned, 51 C"),
        (
            "thor-jp7.0",
            "power mode 120W (1), memory 4266 of 4266 to 4266 MHz, gpu 1575 of 1575 to 1575 MHz, clocks pinned, 64 C, "
            "throttled by gpu-throttle-alert",
        ),
        ("orin-agx-jp7.2", ""),
    ],
)
def test_conditions_of_a_jetson(tree: str, line: str) -> None:
    assert say(conditions(False, TREES / tree)) == line


def test_conditions_elsewhere(tmp_path: Path) -> None:
    assert conditions(False, tmp_path) == {"governor": "unknown"}
    folder = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_governor").write_text("powersave\n")
    (folder / "scaling_cur_freq").write_text("3200000\n")
    assert conditions(False, tmp_path) == {"governor": "powersave", "cpu_mhz": 3200}
    assert conditions(True, tmp_path, str(tmp_path / "none.so"))["why_unknown"].startswith("no NVIDIA driver (")


class _Device(HostDevice):
    """log: of each frame, whether its parts were timed.  most: frames under way at once."""

    name = "cuda"
    in_flight = 2
    graph, contexts, transfers = "on", "2", "pinned"
    memory = 512_000_000  # type: ignore[assignment]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.parts = False
        self.log: list[bool] = []
        self.running = self.most = 0

    def whole_frame(self, height: int, width: int, confidence: bool) -> _Frame:
        return _Frame(self, height, width, confidence)


class _Frame(HostFrame):
    done = False  # type: ignore[assignment]  # as on a GPU, until its mask is asked for

    def __init__(self, device: _Device, *args: Any) -> None:
        super().__init__(device, *args)
        self._owner = device

    def play(self) -> None:
        device = self._owner
        device.log.append(device.parts)
        device.running += 1
        device.most = max(device.most, device.running)
        super().play()

    def mask(self) -> Mask:
        device = self._owner
        device.running -= 1
        times = device.timings
        if not device.parts:
            times.engine, times.gather, times.stitch = times.engine + times.gather + times.stitch, 0.0, 0.0
        return super().mask()


class _LocalWorker(Worker):
    """Both sides in this process, with `_Device` under the segmenter."""

    def __init__(self, bundle: Path, segmenter: Segmenter, manifest: Any) -> None:
        host = segmenter.device
        assert isinstance(host, HostDevice)
        self.device_ = _Device(host.session, host.spec, host.tiling, 1, 1)
        self._temporary = tempfile.TemporaryDirectory()
        self._folder = Path(self._temporary.name)
        self._served = _Served(Segmenter(self.device_), Bundle(bundle, manifest), 1)
        self.opened = Opened(manifest.precision, manifest.backend, manifest.sdk, manifest.device, 1, 1.0)

    def close(self) -> None:
        self._temporary.cleanup()

    def _ask(self, command: str, **values: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(json.dumps(getattr(self._served, command)(**values)))
        return answer


@contextmanager
def _local_worker(bundle: Path) -> Iterator[_LocalWorker]:
    with open_segmenter(bundle, 1) as (segmenter, manifest), _LocalWorker(bundle, segmenter, manifest) as worker:
        yield worker
