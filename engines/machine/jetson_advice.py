"""What the doctor finds on a Jetson: what it is, what is missing, what slows it down, and what mends each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.machine.finding import Finding
from engines.machine.interpreter import Interpreter
from engines.machine.jetson import Clock, Jetson
from engines.machine.sysfs import glob, memory_kb, text

BUILD_BYTES = 4e9  # engine, its builder and Python at once, for SegFormer-B0 at 1024x1024; B5 wants more
DISK_BYTES = 3e9
HOT_C = 85  # a throttling Orin is at 99 (software) or 104.5 (hardware): near enough to change a timing
SWAP = (
    "sudo systemctl disable --now nvzramconfig; sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && "
    "sudo mkswap /swapfile && sudo swapon /swapfile"
)


def examine_jetson(jetson: Jetson, python: Interpreter, root: Path) -> list[Finding]:
    board = _board(jetson)
    machine = [*_power_mode(jetson), *_clocks(jetson), *_heat(jetson), *_memory(root), *_disk(root)]
    if board.status != "ok":  # what is missing on a board that is too old is not worth mending
        return [board, *machine]
    return [
        board, *_container(root), *_tensorrt(jetson, python, root), *_dla(jetson, root), *_wheels(jetson, python),
        *_kernels(jetson, python, root), *machine,
    ]  # fmt: skip


def _board(jetson: Jetson) -> Finding:
    jetpack = f"JetPack {jetson.jetpack}" if jetson.jetpack else "JetPack unknown"
    sm = "sm_{}{}".format(*jetson.sm) if jetson.sm[0] else "GPU unknown"
    detail = f"{jetson.board} ({jetson.family}, {sm}), {jetpack}, Jetson Linux {jetson.l4t or 'unknown'}"
    if 0 < jetson.major < 36:
        what = f"{detail}: its TensorRT (8.5 or older) and Python (3.8 or older) are too old"
        if jetson.family == "Orin":
            return Finding("jetson", "missing", what, "flash JetPack 6 or newer: sdkmanager, or its SD card image")
        return Finding("jetson", "missing", f"{what}, and {jetson.family} has no newer ones",
                       "only its CPU remains: --backend openvino with a Python of your own, 3.10 or newer")  # fmt: skip
    return Finding("jetson", "ok", detail)


def _container(root: Path) -> Iterator[Finding]:
    if _in_container(root) and not _library(root, "libcuda.so*"):
        yield Finding("container", "missing", "a container without the driver's libraries: it sees no GPU",
                      "start it with: docker run --runtime nvidia ...")  # fmt: skip


def _tensorrt(jetson: Jetson, python: Interpreter, root: Path) -> Iterator[Finding]:
    version, apt = jetson.tensorrt, "sudo apt-get update && sudo apt-get install nvidia-jetpack"
    if not version:
        if "tensorrt" not in python.modules:
            yield Finding("tensorrt", "missing", "not installed", apt)
        return
    if jetson.sm == (8, 7):
        yield from _without_sm87(version, root)
    if "tensorrt" in python.modules:
        yield Finding("tensorrt", "ok", f"TensorRT {version}, {python.name} finds it")
    elif "python3-libnvinfer" not in jetson.packages:
        yield Finding("tensorrt", "missing", f"TensorRT {version} is installed without its Python module",
                      "sudo apt-get install python3-libnvinfer")  # fmt: skip
    else:
        yield _invisible(version, python, root)


def _invisible(version: str, python: Interpreter, root: Path) -> Finding:
    """The module is there, but not for this interpreter."""
    theirs = [path.parts[-3] for path in glob(root, "usr/lib/python3.*/dist-packages/tensorrt")]
    name = theirs[-1] if theirs else "python3"
    what = f"TensorRT {version} is there, but this Python does not see it"
    mend = f"{name} -m venv --system-site-packages .venv, and install into that"
    if theirs and name != python.name:
        return Finding("tensorrt", "missing", f"{what}: it is for {name}, this is {python.name}", mend)
    if python.venv and not python.sees_system:
        return Finding("tensorrt", "missing", f"{what}: the virtual environment hides the system's packages", mend)
    return Finding("tensorrt", "missing", what, "sudo apt-get install --reinstall python3-libnvinfer")


def _without_sm87(version: str, root: Path) -> Iterator[Finding]:
    """TensorRT that was built without Orin's kernels: 10.13, made for Thor, and the one for ARM servers."""
    refusal = 'it has no kernels for Orin ("Target GPU SM 87 is not supported")'
    targets = root / "usr/local/cuda/targets"
    if version.startswith("10.13."):
        yield Finding("tensorrt", "missing", f"TensorRT {version}: {refusal}", "take the one of your JetPack: 10.3 of "
                      "JetPack 6, 10.16 of 7.2: sudo apt-get install --allow-downgrades 'tensorrt=10.3.*'")  # fmt: skip
    elif version.startswith("10.") and (targets / "sbsa-linux").is_dir() and not (targets / "aarch64-linux").is_dir():
        minor = int(version.split(".")[1])
        if minor < 16:  # from JetPack 7.2 on, Orin takes the server packages too
            yield Finding("tensorrt", "missing", f"TensorRT {version} for ARM servers: {refusal}",
                          "in a container take the image whose tag ends in -igpu")  # fmt: skip


def _dla(jetson: Jetson, root: Path) -> Iterator[Finding]:
    """TensorRT for CUDA 12 on a Jetson does not load without the compiler of an accelerator that nothing here uses.

    JetPack 7 has no such library: there a container made for JetPack 6 misses it (blakeblackshear/frigate issue 23582).
    """
    made_for = jetson.packages.get("libnvinfer10", jetson.packages.get("libnvinfer8", ""))
    if jetson.major < 36 or "+cuda12" not in made_for:
        return
    if _library(root, "libnvdla_compiler.so"):
        return
    core = jetson.packages.get("nvidia-l4t-core", "")
    where = "on the host, which lends it to the container: " if _in_container(root) else ""
    mend = f"{where}sudo apt-get install nvidia-l4t-dla-compiler{'=' if core else ''}{core} && sudo ldconfig"
    if jetson.major > 36:
        mend = "take TensorRT, or the container's image, of JetPack 7"
    what = "libnvdla_compiler.so is not there, and import tensorrt needs it"
    yield Finding("libnvdla_compiler", "missing", what, mend)


def _wheels(jetson: Jetson, python: Interpreter) -> Iterator[Finding]:
    if python.wheels and not _made_for_jetson(jetson, python.wheels[0][1]):
        names = " ".join(name for name, _ in python.wheels)
        yield Finding("tensorrt wheel", "missing" if jetson.sm == (8, 7) else "note",
                      f"pip installed {names} {python.wheels[0][1]}: not made for a Jetson, and it hides JetPack's",
                      f"pip uninstall -y tensorrt {names}")  # fmt: skip


def _made_for_jetson(jetson: Jetson, version: str) -> bool:
    """NVIDIA's wheels are, from TensorRT 11.4.1 and Jetson Linux 39 on."""
    release = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    return jetson.major >= 39 and release >= (11, 4, 1)


def _kernels(jetson: Jetson, python: Interpreter, root: Path) -> Iterator[Finding]:
    """What compiles the kernels of a bundle, and pycuda."""
    toolkit = f"CUDA {jetson.cuda}" if jetson.cuda else "CUDA"
    ours = (root / "usr/local/cuda/bin/nvcc").exists()
    if python.nvcc:
        yield Finding("nvcc", "ok", f"{toolkit}, {python.nvcc}")
    elif ours:
        yield Finding("nvcc", "note", f"{toolkit} is installed, but nvcc is not on PATH",
                      "export PATH=/usr/local/cuda/bin:$PATH")  # fmt: skip
    else:
        yield Finding("nvcc", "missing", "no CUDA toolkit: pycuda and the kernels of a new bundle cannot be compiled",
                      "sudo apt-get install nvidia-jetpack && export PATH=/usr/local/cuda/bin:$PATH")  # fmt: skip
    if "pycuda" not in python.modules:
        path = "" if python.nvcc else "PATH=/usr/local/cuda/bin:$PATH "
        yield Finding("pycuda", "missing", "not installed; it is compiled on the board, with nvcc and Python's headers",
                      f"sudo apt-get install python3-dev g++ && {path}pip install pycuda")  # fmt: skip


def _power_mode(jetson: Jetson) -> Iterator[Finding]:
    mode, fastest = jetson.mode, jetson.fastest_mode
    if mode is None or fastest is None:
        yield Finding("power mode", "note", "unknown: no /etc/nvpmodel.conf here (in a container that is so)")
    elif mode == fastest:
        yield Finding("power mode", "ok", f"{jetson.mode_name} ({mode})")
    else:
        yield Finding("power mode", "note", f"{jetson.mode_name} ({mode}) caps the clocks; the fastest here is "
                      f"{jetson.modes[fastest]} ({fastest})", f"sudo nvpmodel -m {fastest}")  # fmt: skip


def _clocks(jetson: Jetson) -> Iterator[Finding]:
    gpu, memory, cpu = (jetson.clocks_of(part) for part in ("gpu", "memory", "cpu"))
    said = ", ".join(_say(part, clocks) for part, clocks in (("gpu", gpu), ("memory", memory), ("cpu", cpu)) if clocks)
    if not gpu:
        yield Finding("clocks", "note", f"the GPU's are not readable here{'; ' if said else ''}{said}")
    elif all(clock.pinned for clock in (*gpu, *cpu)):
        yield Finding("clocks", "ok", f"pinned: {said}")
    else:
        yield Finding("clocks", "note", f"not pinned, so that timings wander: {said}", "sudo jetson_clocks")


def _say(part: str, clocks: list[Clock]) -> str:
    fastest = max(clocks, key=lambda clock: clock.high)
    capped = f" (of {fastest.ceiling:.0f})" if fastest.ceiling > fastest.high else ""
    return f"{part} {fastest.current:.0f} of {fastest.low:.0f} to {fastest.high:.0f}{capped} MHz"


def _heat(jetson: Jetson) -> Iterator[Finding]:
    if not jetson.temperatures:
        return
    zone = max(jetson.temperatures, key=lambda name: jetson.temperatures[name])
    hottest = f"{zone} {jetson.temperatures[zone]:.0f} C"
    if jetson.throttled:
        yield Finding("heat", "note", f"{hottest}; held back by {', '.join(jetson.throttled)}",
                      "cool it (sudo jetson_clocks --fan), or take a mode of fewer watts")  # fmt: skip
    elif jetson.temperatures[zone] >= HOT_C:
        yield Finding("heat", "note", f"{hottest}: soon throttled", "cool it: sudo jetson_clocks --fan")
    else:
        yield Finding("heat", "ok", hottest)


def _memory(root: Path) -> Iterator[Finding]:
    """Swap that is compressed memory (zram) makes no room for a build."""
    available = memory_kb(root).get("MemAvailable")
    if available is None:
        return
    swaps = [line.split() for line in (text(root / "proc/swaps") or "").splitlines()[1:]]
    disk = sum(1024 * (int(swap[2]) - int(swap[3])) for swap in swaps if "zram" not in swap[0])
    free = 1024 * available
    said = f"{free / 1e9:.1f} GB free, {disk / 1e9:.1f} GB of swap on disk left, shared by CPU and GPU"
    if free + disk < BUILD_BYTES:
        yield Finding("memory for builds", "note", f"{said}: a build may end as \"Killed\"",
                      f"close the desktop (sudo systemctl isolate multi-user), or add swap: {SWAP}")  # fmt: skip
    else:
        yield Finding("memory for builds", "ok", said)


def _disk(root: Path) -> Iterator[Finding]:
    try:
        free = shutil.disk_usage(root).free
    except OSError:
        return
    if free < DISK_BYTES:
        yield Finding("disk", "note", f"{free / 1e9:.1f} GB free; a build wants {DISK_BYTES / 1e9:.0f}",
                      "sudo apt-get clean")  # fmt: skip


def _in_container(root: Path) -> bool:
    return any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))


def _library(root: Path, name: str) -> bool:
    """Whether it is where Jetson Linux, or a container's runtime, puts the driver's libraries."""
    folders = ("aarch64-linux-gnu/nvidia/", "aarch64-linux-gnu/tegra/", "aarch64-linux-gnu/", "")
    return any(_there(path) for folder in folders for path in glob(root, f"usr/lib/{folder}{name}"))


def _there(path: Path) -> bool:
    """Containers hold empty files where the runtime should have put a library of the host."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
