"""The cubin of tile.cu for one GPU, by nvcc where there is one, otherwise by NVRTC.  No GPU is needed.

A cubin runs on GPUs of its SM's major version from its minor version on; bundles carry one, so that a machine that only
runs needs no compiler.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from engines.errors import DeployError
from engines.gpu import nvrtc
from engines.guard.ledger import temporary_folder

SOURCE = Path(__file__).parents[1] / "tiling" / "tile.cu"
HEADERS = tuple(
    SOURCE.with_name(name)
    for name in (
        "tile.h",
        "tail.h",
        "tile_confidence.h",
        "tile_device.cuh",
        "tile_gather.cuh",
        "tile_interpolate.cuh",
        "tile_stitch.cuh",
        "tile_views.h",
        "tile_views.cuh",
        "tail_sample.cuh",
        "tail.cuh",
    )
)
TOOLKIT = Path("/usr/local/cuda")
OLDEST = (7, 0)  # Volta: before it fp16 and threads of a warp work in other ways, and CUDA 13 knows none of them
TEGRA = ((7, 2), (8, 7), (10, 1), (11, 0))


def fits(built: tuple[int, int], here: tuple[int, int]) -> bool:
    """Whether a cubin for `built` runs on a GPU of `here`: on later minor versions, and on Tegra only on its own.

    CUDA C++ Programming Guide, "Binary Compatibility".
    """
    if built in TEGRA or here in TEGRA:
        return built == here
    return built[0] == here[0] and built[1] <= here[1]


def compile_kernels(sm: tuple[int, int], strict: bool = False) -> bytes:
    """sm: compute capability, (8, 7) for a Jetson Orin.  strict: a warning is an error, for tests.

    nvcc is looked for in PATH, $CUDA_HOME and /usr/local/cuda*; NVRTC also among the packages of pip.  Where one
    compiler fails, such as one that does not know the GPU, the next is tried.
    Raises DeployError where none is found, for GPUs before Volta, and with each compiler's own words where all fail.
    """
    arch = f"sm_{sm[0]}{sm[1]}"
    if sm < OLDEST:
        raise DeployError(f"kernels: got a GPU of {arch}, expected sm_70 (Volta) or newer; use --backend openvino")
    for path in (SOURCE, *HEADERS):
        if not path.is_file():
            raise DeployError(f"kernels: {path.name} is not beside the package engines; install edgeseg again")
    failed = []
    for compile_ in _compilers(arch, strict):
        try:
            return compile_()
        except DeployError as error:
            failed.append(str(error).removeprefix("kernels: "))
    if failed:
        raise DeployError(f"kernels: {'; and '.join(failed)}")
    raise DeployError(
        f"kernels: no CUDA compiler for {arch}: got neither nvcc in PATH, $CUDA_HOME or {TOOLKIT} nor libnvrtc; "
        "install the CUDA toolkit (on a Jetson: apt-get install nvidia-jetpack), or run: pip install nvidia-cuda-nvrtc"
    )


def _compilers(arch: str, strict: bool) -> Iterator[Callable[[], bytes]]:
    for nvcc in find_nvccs():
        yield partial(_by_nvcc, nvcc, arch, strict)
    for library in nvrtc.find(_toolkits()):
        yield partial(_by_nvrtc, library, arch, strict)


def find_nvccs() -> list[Path]:
    on_path = shutil.which("nvcc")
    candidates = [Path(on_path)] if on_path else []
    candidates += [folder / "bin" / "nvcc" for folder in _toolkits()]
    usable = dict[Path, Path]()
    for path in candidates:
        if os.access(path, os.X_OK):
            usable.setdefault(path.resolve(), path)  # /usr/local/cuda is a link to one of the others
    return list(usable.values())


def _toolkits() -> list[Path]:
    """Where toolkits may be: those that were chosen, then the others, the newest first."""
    home = os.environ.get("CUDA_HOME")
    others = sorted(TOOLKIT.parent.glob(f"{TOOLKIT.name}-*"), reverse=True)
    return [*([Path(home)] if home else []), TOOLKIT, *others]


def _by_nvrtc(library: str, arch: str, strict: bool) -> bytes:
    compiler = nvrtc.Compiler.load(library)
    _check_arch(arch, compiler.architectures(), f"NVRTC {compiler.version()} at {library}")
    return compiler.cubin(SOURCE.read_text(), {path.name: path.read_text() for path in HEADERS}, arch, strict)


def _by_nvcc(nvcc: Path, arch: str, strict: bool) -> bytes:
    release = re.search(r"release (\S+),", _run([nvcc, "--version"]))
    _check_arch(arch, _run([nvcc, "--list-gpu-code"]).split(), f"nvcc {release[1] if release else ''} at {nvcc}")
    with temporary_folder() as folder:
        target = folder / "tile.cubin"
        warnings = ["-Werror", "all-warnings"] if strict else []
        _run([nvcc, "-cubin", f"-arch={arch}", "--fmad=false", *warnings, SOURCE, "-o", target])
        return target.read_bytes()


def _run(command: list[Path | str]) -> str:
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise DeployError(f"kernels: cannot run {words[0]}: {error}; install the CUDA toolkit again") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[-600:]
        raise DeployError(
            f"kernels: {words[0]} failed ({said}); it needs a host compiler (apt-get install g++) and room in "
            f"{tempfile.gettempdir()}"
        )
    return done.stdout


def _check_arch(arch: str, known: list[str], compiler: str) -> None:
    if arch not in known:
        raise DeployError(
            f"kernels: {compiler} does not know this GPU, {arch}: got {', '.join(known) or 'no list of GPUs'}; "
            "install a CUDA toolkit that supports it, newer for a newer GPU and older for an older one"
        )
