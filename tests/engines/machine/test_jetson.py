"""Jetsons as their files describe them; where the files come from is in trees/README.md."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engines.machine.finding import Finding
from engines.machine.interpreter import Interpreter
from engines.machine.jetson import JETPACK, Jetson, read_jetson, read_module
from engines.machine.jetson_advice import examine_jetson

TREES = Path(__file__).parent / "trees"
GOOD = Interpreter((3, 10), True, True, frozenset({"tensorrt", "pycuda"}), (), "/usr/local/cuda/bin/nvcc")
NANO, AGX, THOR = "orin-nano-super-jp6.2.1", "orin-agx-jp6.1-no-release-file", "thor-jp7.0"


@pytest.mark.parametrize(
    ("tree", "family", "sm", "l4t", "jetpack", "tensorrt", "cuda", "mode"),
    [
        (NANO, "Orin", (8, 7), "36.4.7", "6.2.1", "10.3.0.30", "12.6.11", "25W"),
        (AGX, "Orin", (8, 7), "36.4.0", "6.1", "10.3.0.30", "12.6.2", "MAXN"),
        ("orin-agx-jp5.1.2", "Orin", (8, 7), "35.4.1", "5.1.2", "8.5.2", "11.4.19", ""),
        (THOR, "Thor", (11, 0), "38.2.0", "7.0", "10.13.3.9", "13.0.0", "120W"),
        ("orin-agx-jp7.2", "Orin", (8, 7), "39.2.0", "7.2", "", "", ""),
        ("tx2-jp4.6.1", "tegra186", (0, 0), "32.7.1", "", "", "", ""),
    ],
)
def test_a_board_is_recognised(
    tree: str, family: str, sm: tuple[int, int], l4t: str, jetpack: str, tensorrt: str, cuda: str, mode: str
) -> None:
    jetson = read_jetson(TREES / tree)
    assert jetson is not None
    assert (jetson.family, jetson.sm, jetson.l4t, jetson.jetpack) == (family, sm, l4t, jetpack)
    assert (jetson.tensorrt, jetson.cuda, jetson.mode_name) == (tensorrt, cuda, mode)
    assert "\0" not in jetson.board


def test_other_machines_are_not_jetsons(tmp_path: Path) -> None:
    assert read_jetson(tmp_path) is None
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_text("raspberrypi,4-model-b\0brcm,bcm2711\0")
    assert read_jetson(tmp_path) is None


def test_a_container_does_not_see_the_device_tree(tmp_path: Path) -> None:
    """Docker hides /sys/firmware; without this an Orin would pass for a workstation with a GPU of its own."""
    root = _copy(NANO, tmp_path)
    shutil.rmtree(root / "proc/device-tree")
    assert read_jetson(root) is None
    soc = root / "sys/devices/soc0"
    soc.mkdir(parents=True)
    for name, content in {"family": "Tegra", "soc_id": "35", "machine": "NVIDIA Jetson Orin Nano"}.items():
        (soc / name).write_text(f"{content}\n")
    jetson = read_jetson(root)
    assert jetson is not None
    assert (jetson.board, jetson.soc, jetson.sm) == ("NVIDIA Jetson Orin Nano", "tegra234", (8, 7))
    (soc / "family").write_text("Freescale i.MX\n")
    assert read_jetson(root) is None


@pytest.mark.parametrize(("l4t", "jetpack"), [("36.4.7", "6.2.1"), ("36.5.0", "6.2.2"), ("38.4.0", "7.1")])
def test_jetpack_without_its_own_package_goes_by_the_release(l4t: str, jetpack: str) -> None:
    assert Jetson("", "tegra234", l4t).jetpack == jetpack


def test_a_release_that_is_not_in_the_table_still_has_its_major(tmp_path: Path) -> None:
    root = _copy("orin-agx-jp7.2", tmp_path)
    release = root / "etc/nv_tegra_release"
    release.write_text(release.read_text().replace("REVISION: 2.0", "REVISION: 9.9"))
    jetson = read_jetson(root)
    assert jetson is not None
    assert "39.9.9" not in JETPACK
    assert (jetson.l4t, jetson.jetpack) == ("39.9.9", "7")


def test_any_of_jetpacks_metapackages_tells_its_version(tmp_path: Path) -> None:
    root = _edited("orin-nano-super-jp6.2.1", tmp_path, "nvidia-jetpack", "something-else")
    release = root / "etc/nv_tegra_release"
    release.write_text(release.read_text().replace("REVISION: 4.7", "REVISION: 4.99"))
    jetson = read_jetson(root)
    assert jetson is not None
    assert "nvidia-jetpack" not in jetson.packages
    assert jetson.jetpack == "6.2.1"  # of nvidia-tensorrt 6.2.1+b38


def test_removed_packages_are_not_installed_ones() -> None:
    jetson = read_jetson(TREES / NANO)
    assert jetson is not None
    assert "nvidia-l4t-dla-compiler" not in jetson.packages  # "deinstall ok config-files"
    assert jetson.packages["python3-libnvinfer"] == "10.3.0.30-1+cuda12.5"


def test_clocks_say_whether_they_are_pinned_and_capped() -> None:
    nano, thor, old = (read_jetson(TREES / tree) for tree in (NANO, THOR, "orin-agx-jp5.1.2"))
    assert nano is not None
    assert thor is not None
    assert old is not None
    (gpu,) = nano.clocks_of("gpu")
    assert (gpu.current, gpu.low, gpu.high, gpu.ceiling) == (306, 306, 918, 1020)
    assert not gpu.pinned
    assert [clock.name for clock in nano.clocks_of("cpu")] == ["cpu policy0", "cpu policy4"]
    assert [clock.name for clock in thor.clocks] == ["memory bwmgr", "gpu gpu-gpc-0", "cpu policy0"]
    assert all(clock.pinned for clock in thor.clocks)
    assert [clock.high for clock in old.clocks] == [1300.5]


def test_sensors_that_do_not_answer_are_left_out() -> None:
    nano, thor = read_jetson(TREES / NANO), read_jetson(TREES / THOR)
    assert nano is not None
    assert thor is not None
    assert nano.temperatures == pytest.approx({"cpu": 51.187, "gpu": 50.218, "tj": 51.187})
    assert thor.throttled == ("gpu-throttle-alert",)


def test_maxn_is_found_by_its_name() -> None:
    """On an Orin Nano Super `nvpmodel -m 0`, which most advice says, is the 15 W mode."""
    findings = _examine(NANO)
    assert findings["power mode"].fix == "sudo nvpmodel -m 2"
    assert "25W (1)" in findings["power mode"].detail
    assert _examine(THOR)["power mode"].fix == "sudo nvpmodel -m 0"
    assert _examine(AGX)["power mode"].status == "ok"


def test_a_board_in_order_has_nothing_missing(tmp_path: Path) -> None:
    root = _with_dla(_copy(AGX, tmp_path))
    findings = _examine_root(root)
    assert {finding.status for finding in findings.values()} == {"ok"}
    assert findings["clocks"].detail.startswith("pinned: gpu 1300")


def test_a_fresh_board_says_what_is_missing(tmp_path: Path) -> None:
    """The NVIDIA image with a plain virtual environment, and nothing built yet."""
    plain = Interpreter((3, 10), venv=True, sees_system=False)
    findings = _examine_root(_with_dla(_copy(NANO, tmp_path)), plain)
    assert "hides the system's packages" in findings["tensorrt"].detail
    assert findings["tensorrt"].fix.startswith("python3.10 -m venv --system-site-packages .venv")
    assert findings["nvcc"].fix == "export PATH=/usr/local/cuda/bin:$PATH"
    assert findings["pycuda"].fix.endswith("PATH=/usr/local/cuda/bin:$PATH pip install pycuda")
    assert findings["clocks"].fix == "sudo jetson_clocks"
    assert "918 (of 1020) MHz" in findings["clocks"].detail
    assert "Killed" in findings["memory for builds"].detail  # its swap is zram alone
    assert "swapon /swapfile" in findings["memory for builds"].fix


@pytest.mark.parametrize(
    ("tree", "python", "topic", "detail", "fix"),
    [
        ("orin-agx-jp5.1.2", GOOD, "jetson", "too old", "flash JetPack 6"),
        ("tx2-jp4.6.1", GOOD, "jetson", "no newer ones", "--backend openvino"),
        ("orin-agx-jp7.2", Interpreter((3, 12)), "tensorrt", "not installed", "apt-get install nvidia-jetpack"),
        ("orin-agx-jp7.2", Interpreter((3, 12)), "nvcc", "no CUDA toolkit", "apt-get install nvidia-jetpack"),
        (NANO, Interpreter((3, 11)), "tensorrt", "for python3.10, this is python3.11", "python3.10 -m venv"),
        (NANO, Interpreter((3, 10)), "tensorrt", "does not see it", "--reinstall python3-libnvinfer"),
        (NANO, GOOD, "libnvdla_compiler", "import tensorrt needs it", "nvidia-l4t-dla-compiler=36.4.7-20250918154033"),
        (
            NANO, Interpreter((3, 10), modules=GOOD.modules, wheels=(("tensorrt_cu12", "11.4.0.106"),)),
            "tensorrt wheel", "hides JetPack's", "pip uninstall -y tensorrt tensorrt_cu12",
        ),
        (THOR, GOOD, "heat", "held back by gpu-throttle-alert", "cool it"),
    ],
)  # fmt: skip
def test_known_traps(tree: str, python: Interpreter, topic: str, detail: str, fix: str) -> None:
    finding = _examine_root(TREES / tree, python)[topic]
    assert finding.status != "ok"
    assert detail in finding.detail
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("version", "major", "refused"), [("11.4.1.12", 39, False), ("11.4.0.106", 39, True), ("11.4.1.12", 38, True)]
)
def test_nvidias_wheels_are_for_boards_from_11_4_1_and_jetson_linux_39_on(
    tmp_path: Path, version: str, major: int, refused: bool
) -> None:
    shutil.copytree(TREES / "orin-agx-jp7.2", tmp_path / "root")
    release = tmp_path / "root/etc/nv_tegra_release"
    release.write_text(release.read_text().replace("# R39 ", f"# R{major} "))
    python = Interpreter((3, 12), modules=GOOD.modules, wheels=(("tensorrt_cu13", version),))
    assert ("tensorrt wheel" in _examine_root(tmp_path / "root", python)) == refused


def test_a_board_that_is_too_old_is_not_told_what_else_it_lacks() -> None:
    topics = set(_examine_root(TREES / "orin-agx-jp5.1.2", Interpreter((3, 8))))
    assert topics == {"jetson", "power mode", "clocks"}


def test_a_library_that_a_container_borrows_is_mended_on_the_host(tmp_path: Path) -> None:
    root = _copy(NANO, tmp_path)
    (root / "run").mkdir()
    (root / "run/.containerenv").touch()
    assert _examine_root(root)["libnvdla_compiler"].fix.startswith("on the host, ")


def test_tensorrt_without_its_module(tmp_path: Path) -> None:
    root = _edited(NANO, tmp_path, "python3-libnvinfer", "python3-other")
    assert _examine_root(root, Interpreter((3, 10)))["tensorrt"].fix == "sudo apt-get install python3-libnvinfer"


def test_a_container_for_jetpack_6_on_jetpack_7(tmp_path: Path) -> None:
    """Its TensorRT wants a library that the runtime takes from the host, and JetPack 7 has none."""
    root = _copy(NANO, tmp_path)
    shutil.copy(TREES / "orin-agx-jp7.2/etc/nv_tegra_release", root / "etc/nv_tegra_release")
    assert _examine_root(root)["libnvdla_compiler"].fix.endswith("image, of JetPack 7")
    assert "libnvdla_compiler" not in _examine_root(_with_dla(root))


def test_tensorrt_without_orins_kernels(tmp_path: Path) -> None:
    """10.13, and the one for ARM servers in a container that is not the -igpu one; Thor has its kernels."""
    root = _edited(AGX, tmp_path / "a", "10.3.0.30-1+cuda12.5", "10.13.3.9-1+cuda13.0")
    assert any("Target GPU SM 87 is not supported" in f.detail for f in _list(root))
    root = _edited(AGX, tmp_path / "b", "10.3.0.30-1+cuda12.5", "10.11.0.33-1+cuda12.9")
    assert not any("SM 87" in f.detail for f in _list(root))
    (root / "usr/local/cuda/targets/sbsa-linux").mkdir(parents=True)
    assert any("-igpu" in f.fix for f in _list(root))
    assert not any("SM 87" in f.detail for f in _list(TREES / THOR))


def test_a_container_without_the_nvidia_runtime(tmp_path: Path) -> None:
    """The base image has empty files where the runtime puts the host's libraries."""
    root = _copy(NANO, tmp_path)
    assert "container" not in _examine_root(root)
    (root / ".dockerenv").touch()
    library = root / "usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    assert "--runtime nvidia" in _examine_root(root)["container"].fix
    library.write_text("stands for a library")
    assert "container" not in _examine_root(root)


def test_swap_on_disk_makes_room_for_a_build(tmp_path: Path) -> None:
    root = _copy(NANO, tmp_path)
    with (root / "proc/swaps").open("a") as swaps:
        swaps.write("/swapfile                               file\t\t8388604\t\t0\t\t-2\n")
    assert _examine_root(root)["memory for builds"].status == "ok"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 10**10 - 10**8, 10**8))
    assert "0.1 GB free" in _examine(NANO)["disk"].detail


def _examine(tree: str) -> dict[str, Finding]:
    return _examine_root(TREES / tree)


def _examine_root(root: Path, python: Interpreter = GOOD) -> dict[str, Finding]:
    return {finding.topic: finding for finding in _list(root, python)}


def _list(root: Path, python: Interpreter = GOOD) -> list[Finding]:
    jetson = read_jetson(root)
    assert jetson is not None
    return [finding for finding in examine_jetson(jetson, python, root) if finding.topic != "disk" or finding.fix]


def _copy(tree: str, target: Path) -> Path:
    return Path(shutil.copytree(TREES / tree, target / tree))


def _edited(tree: str, target: Path, old: str, new: str) -> Path:
    root = _copy(tree, target)
    status = root / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace(old, new))
    return root


def _with_dla(root: Path) -> Path:
    library = root / "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so"
    library.parent.mkdir(parents=True)
    library.write_text("stands for a library")
    return root


@pytest.mark.parametrize(
    ("tree", "module"),
    [
        ("orin-agx-jp5.1.2", "p3701-0000"), ("orin-agx-jp6.1-no-release-file", "p3701-0005"),
        ("orin-nano-super-jp6.2.1", "p3767-0005"), ("thor-jp7.0", "p3834-0008"), ("tx2-jp4.6.1", ""), ("none", ""),
    ],
)  # fmt: skip
def test_the_module_not_the_carrier_is_what_an_engine_is_tied_to(tree: str, module: str) -> None:
    assert read_module(TREES / tree) == module
