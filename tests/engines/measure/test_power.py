"""Power and energy from recorded and changing trees, and from a library with NVML's interface."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from engines.machine.nvml import Nvml, NvmlError
from engines.measure import power
from engines.measure.power import Meter, NoMeter, find_meter, measured
from engines.measure.rails import find_rails

TREES = Path(__file__).parents[1] / "machine" / "trees"
FAKE = ("FAKE_NVML_GPUS", "FAKE_NVML_NO_ENERGY", "FAKE_NVML_NOTHING", "FAKE_NVML_BROKEN")
CUDA = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, which makes the library that stands for NVML")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).parents[1] / "machine" / "fake_nvml.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-o", str(library)], check=True)
    return str(library)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*FAKE, *CUDA):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("tree", "source", "milliwatts"),
    [
        ("orin-nano-super-jp6.2.1", "INA3221 VDD_IN", 4984 * 960 / 1e3),
        (
            "orin-agx-jp6.1-no-release-file",
            "INA3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
            (12008 * 280 + 12008 * 40 + 4968 * 980) / 1e3,
        ),
        ("thor-jp7.0", "INA238 VIN", 30141),
        ("tx2-jp4.6.1", "INA3221 VDD_IN", 4321),
    ],
)
def test_a_jetson_is_measured_at_its_input_and_nothing_twice(tree: str, source: str, milliwatts: float) -> None:
    for gpu in (False, True):
        meter = find_meter(gpu, TREES / tree, "no-such-library.so")
        assert isinstance(meter, Meter)
        assert meter.source == source
        assert not meter.counter
        assert meter.read() == pytest.approx(milliwatts)


def test_thor_without_its_input_monitor_adds_its_three_rails(tmp_path: Path) -> None:
    root = Path(shutil.copytree(TREES / "thor-jp7.0", tmp_path / "thor"))
    shutil.rmtree(root / "sys/class/hwmon/hwmon5")
    rails, _ = find_rails(root)
    assert rails is not None
    assert rails.milliwatts() == pytest.approx((12040 * 640 + 12040 * 960 + 5088 * 1740) / 1e3)


@pytest.mark.parametrize("label", ["VIN", ""])
def test_thors_input_monitor_is_labelled_as_a_chip_or_not_at_all(label: str, tmp_path: Path) -> None:
    root = Path(shutil.copytree(TREES / "thor-jp7.0", tmp_path / "thor"))
    chip = root / "sys/class/hwmon/hwmon5"
    (chip / "in1_label").unlink()
    if label:
        (chip / "label").write_text(f"{label}\n")
    rails, _ = find_rails(root)
    assert rails is not None
    assert (rails.source, rails.milliwatts()) == ("INA238 VIN", 30141)


def test_rails_that_do_not_make_a_total_are_no_number(tmp_path: Path) -> None:
    root = Path(shutil.copytree(TREES / "orin-agx-jp6.1-no-release-file", tmp_path / "agx"))
    (root / "sys/class/hwmon/hwmon3/curr3_input").unlink()  # VIN_SYS_5V0 does not answer: the rest would be too little
    meter = find_meter(True, root)
    assert isinstance(meter, NoMeter)
    assert meter.reason.startswith("Jetson: none of the rails VDDQ_VDD2_1V8AO, VDD_CPU_CV, VDD_GPU_SOC is known")
    assert find_rails(tmp_path)[1] == "no INA3221 power monitor in /sys/class/hwmon"


def test_samples_are_integrated_as_power_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file changes from 2 W to 6 W: what that comes to by the times at which it did."""
    monkeypatch.setattr(power, "SAMPLE_S", 0.002)
    root = Path(shutil.copytree(TREES / "tx2-jp4.6.1", tmp_path / "tx2"))
    (file,) = root.glob("sys/bus/i2c/drivers/ina3221x/*/*/in_power0_input")
    file.write_text("2000\n")
    meter = find_meter(False, root)
    assert isinstance(meter, Meter)
    begin = time.perf_counter()
    with measured(meter) as energy:
        time.sleep(0.2)
        half = time.perf_counter()
        _replace(file, "6000\n")
        time.sleep(0.2)
    end = time.perf_counter()
    expected = 2 * (half - begin) + 6 * (end - half)
    assert energy.joules == pytest.approx(expected, rel=0.1)
    assert energy.seconds == pytest.approx(end - begin, rel=0.1)
    assert energy.watts == pytest.approx(expected / (end - begin), rel=0.1)
    assert energy.samples > 10
    assert (energy.source, energy.reason) == ("INA3221 VDD_IN", "")
    assert energy.to_json()["watts"] == energy.watts


def test_a_sensor_that_fails_on_the_way_leaves_no_number(tmp_path: Path) -> None:
    root = Path(shutil.copytree(TREES / "tx2-jp4.6.1", tmp_path / "tx2"))
    with measured(find_meter(False, root)) as energy:
        next(root.glob("sys/bus/i2c/drivers/ina3221x/*/*/in_power0_input")).unlink()
    assert energy.joules is None
    assert energy.watts is None
    assert "1 of 2 readings failed" in energy.reason


def test_an_error_in_the_block_is_not_lost() -> None:
    with pytest.raises(ZeroDivisionError), measured(Meter("x", lambda: 1.0)):
        raise ZeroDivisionError


def test_rapl_counters_of_all_packages_are_added(tmp_path: Path) -> None:
    """Two sockets, the cores of one (a part of it, not more) and the platform; the second counter starts again."""
    zones = _rapl(tmp_path, {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:2": "psys"})
    _zone(tmp_path / "sys/class/powercap/intel-rapl:0:0", "core", 1_000_000)
    _zone(tmp_path / "sys/class/powercap/intel-rapl-mmio:0", "package-0", 1_000_000)
    (zones[1] / "energy_uj").write_text("262143000000\n")
    meter = find_meter(False, tmp_path)
    assert isinstance(meter, Meter)
    assert meter.source == "RAPL package-0 + package-1"
    with measured(meter) as energy:
        (zones[0] / "energy_uj").write_text("4000000\n")  # 3 J
        (zones[1] / "energy_uj").write_text("1671850\n")  # 0.328850 J up to the end of its range, and 1.67185 J
    assert energy.joules == pytest.approx(3 + 2.00070)


def test_rapl_that_only_root_may_read_says_so(tmp_path: Path) -> None:
    (zone,) = _rapl(tmp_path, {"intel-rapl:0": "package-0"})
    (zone / "energy_uj").unlink()  # as unreadable as one of mode 0400, also for root
    meter = find_meter(False, tmp_path)
    assert isinstance(meter, NoMeter)
    assert "root alone" in meter.reason
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl:0/energy_uj" in meter.reason


def test_nothing_readable_is_a_reason_and_no_number(tmp_path: Path) -> None:
    with measured(find_meter(False, tmp_path)) as energy:
        pass
    assert energy.joules is None
    assert energy.reason == "no RAPL energy counter in /sys/class/powercap"
    gpu = find_meter(True, tmp_path, str(tmp_path / "none.so"))
    assert isinstance(gpu, NoMeter)
    assert gpu.reason.startswith("no NVIDIA driver (")


def test_a_gpu_is_measured_by_its_energy_counter(nvml: str, tmp_path: Path) -> None:
    meter = find_meter(True, tmp_path, nvml)
    assert isinstance(meter, Meter)
    assert meter.source == "NVML energy counter, NVIDIA Fake A"
    with measured(meter) as energy:
        pass
    assert energy.joules == pytest.approx(5)


def test_an_older_gpu_by_its_power(nvml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_NO_ENERGY", "1")
    with measured(find_meter(True, tmp_path, nvml)) as energy:
        time.sleep(0.01)
    assert energy.watts == pytest.approx(250)
    assert energy.source == "NVML power, NVIDIA Fake A"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"FAKE_NVML_NOTHING": "1"}, "NVIDIA Fake A tells neither power nor energy"),
        ({"FAKE_NVML_BROKEN": "1"}, r"nvmlInit_v2 failed \(code 9\)"),
        ({"FAKE_NVML_GPUS": "0"}, "sees no GPU"),
        ({"FAKE_NVML_GPUS": "2"}, "CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-other"}, r"nvmlDeviceGetHandleByUUID failed \(code 2\)"),
    ],
)
def test_a_gpu_that_cannot_be_measured(
    variables: dict[str, str], reason: str, nvml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    meter = find_meter(True, tmp_path, nvml)
    assert isinstance(meter, NoMeter)
    assert re.search(reason, meter.reason)


def test_the_gpu_is_the_one_that_cuda_uses(nvml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_GPUS", "3")
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert Nvml(nvml, {**order}).name == "NVIDIA Fake A"
    assert Nvml(nvml, {**order, "CUDA_VISIBLE_DEVICES": "2,0"}).name == "NVIDIA Fake B"
    assert Nvml(nvml, {"CUDA_VISIBLE_DEVICES": "GPU-fake-1"}).name == "NVIDIA Fake B"
    with pytest.raises(NvmlError, match="no telling"):
        Nvml(nvml, {"CUDA_VISIBLE_DEVICES": "1"})


def test_conditions_leave_out_what_the_gpu_does_not_tell(nvml: str) -> None:
    assert Nvml(nvml, {}).conditions() == {
        "gpu_mhz": 1755, "gpu_max_mhz": 1980, "memory_mhz": 2619, "power_limit_w": 700,
    }  # fmt: skip


def _rapl(root: Path, names: dict[str, str]) -> list[Path]:
    folder = root / "sys/class/powercap"
    return [_zone(folder / zone, name, 1_000_000) for zone, name in names.items()]


def _zone(path: Path, name: str, microjoules: int) -> Path:
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text("262143328850\n")
    return path


def _replace(file: Path, content: str) -> None:
    """As sysfs does it, never seen empty."""
    new = file.with_name("new")
    new.write_text(content)
    new.replace(file)
