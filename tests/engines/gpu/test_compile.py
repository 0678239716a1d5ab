"""The cubin of the kernels, by both compilers; neither needs a GPU."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tail_issue import listing, nvdisasm
from engines.errors import DeployError
from engines.gpu import compile as compiling
from engines.gpu import kernels, nvrtc
from engines.gpu.compile import SOURCE, compile_kernels, find_nvccs
from engines.tiling.tail import BLOCKS
from tests.engines.gpu.cubins import SM, Cubins

KERNELS = (
    [f"tile_gather_{bands}{suffix}" for bands in ("", "bands_") for suffix in kernels.SUFFIX.values()]
    + [f"tile_scatter_{suffix}" for suffix in kernels.SUFFIX.values()]
    + [
        f"tile_stitch_{way}{kind}_{suffix}"
        for way in ("quarter", "whole", "whole_weighted", "any", "any_weighted")
        for kind in ("", "_confidence", "_threshold", "_means")
        for suffix in kernels.SUFFIX.values()
    ]
    + ["tile_confidence_u8", "tile_resize_u8", "tile_views_f32"]
    + [f"tail_to_{block.classes}_{suffix}" for block in BLOCKS for suffix in kernels.SUFFIX.values()]
)
# Registers of a thread, of which a multiprocessor has 65536: 4 blocks of 128 threads at work (5 with one row a thread),
# 3 where confidence or weights keep more.  Blocks of the tail have 64 threads up to 80 classes.
REGISTERS = {
    "gather": 40, "gather_bands": 40, "scatter": 64, "quarter": 128, "whole": 168, "whole_confidence": 168,
    "whole_threshold": 168, "whole_means": 168, "any": 80, "any_confidence": 102, "any_threshold": 102,
    "any_means": 102, "confidence_u8": 40, "resize_u8": 128, "views": 64,
    "tail_to_8": 168, "tail_to_12": 168, "tail_to_20": 168, "tail_to_24": 255, "tail_to_48": 168, "tail_to_80": 255,
    "tail_to_160": 168,
}  # fmt: skip


def _names(cubin: bytes) -> list[str]:
    """Of the kernels in an ELF file, by the sections with their code."""
    assert cubin.startswith(b"\x7fELF")
    return sorted({name.decode() for name in re.findall(rb"\.text\.(t[ai][il][le]_\w+)\0", cubin)})


def _slow(*sms: SM) -> list[Any]:
    """One is enough for those who are in a hurry."""
    return [pytest.param(sm, id=f"sm_{sm[0]}{sm[1]}", marks=() if sm == (9, 0) else pytest.mark.slow) for sm in sms]


@pytest.mark.parametrize("sm", _slow((7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (11, 0), (12, 0)))
def test_kernels_compile_without_warnings_and_without_a_stack(sm: SM, cubins: Cubins) -> None:
    compiled = cubins(sm)
    assert _names(compiled.cubin) == sorted(KERNELS)
    each = r"entry function '(\w+)'.*?(\d+) bytes stack.*? (\d+) bytes spill stores, (\d+) bytes.*?Used (\d+) registers"
    found = re.findall(each, compiled.said, re.S)
    assert sorted(name for name, *_ in found) == sorted(KERNELS)
    for name, *numbers in found:
        stack, stores, loads, registers = map(int, numbers)
        assert (stack, stores, loads) == (0, 0, 0), name
        kind = re.sub(r"^tile_(stitch_)?|_weighted|_f\d+$", "", name)
        most = 64 if sm == (7, 5) and "gather" in kind else REGISTERS.get(kind, REGISTERS["quarter"])
        assert registers <= most, name  # Turing's 1024 threads have 64 each


@pytest.mark.parametrize("sm", _slow((8, 7), (9, 0), (11, 0), (12, 0)))
def test_no_clamp_gives_a_predicate(sm: SM, cubins: Cubins) -> None:
    """ptxas 13.0 asks whether a clamp changed its value by a predicate of Hopper's VIMNMX.RELU, which is false on an
    H100 (2026-11-26): two of four columns of a stitch had weights of zero.
    """
    try:
        nvdisasm()
    except DeployError as error:
        pytest.skip(str(error))
    code = listing(cubins(sm).cubin)
    assert "EXIT" in code
    assert not re.findall(r"MNMX[.\w]*RELU[.\w]* R\d+, P\d", code)


def test_nvrtc_makes_the_cubin_without_a_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    if not list(nvrtc.find((compiling.TOOLKIT,))):
        pytest.skip("libnvrtc is not installed (pip install nvidia-cuda-nvrtc)")
    monkeypatch.setattr(compiling, "find_nvccs", list)
    assert _names(compile_kernels((9, 0), strict=True)) == sorted(KERNELS)
    with pytest.raises(DeployError, match=r"NVRTC \d+\.\d+ at .*does not know this GPU, sm_99: got sm_.*sm_90"):
        compile_kernels((9, 9))


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "find_nvccs", list)
    monkeypatch.setattr(nvrtc, "find", lambda toolkits: iter(()))
    with pytest.raises(DeployError, match=r"sm_87.*neither nvcc.*nor libnvrtc.*nvidia-jetpack.*nvidia-cuda-nvrtc"):
        compile_kernels((8, 7))


def test_the_toolkit_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(compiling, "TOOLKIT", tmp_path / "none")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_nvccs() == []
    _script(tmp_path, "")
    assert find_nvccs() == [tmp_path / "bin" / "nvcc"]
    (tmp_path / "none-11.4").symlink_to(tmp_path)  # the same again
    _script(tmp_path / "none-12.6", "")
    assert find_nvccs() == [tmp_path / "bin" / "nvcc", tmp_path / "none-12.6" / "bin" / "nvcc"]


def _script(home: Path, compile_: str) -> None:
    """An nvcc that knows one GPU."""
    (home / "bin").mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\ncase $1 in\n--version) echo 'Cuda compilation tools, release 11.4, V11.4.1';;\n"
        f"--list-gpu-code) echo sm_72; echo sm_87;;\n*) {compile_};;\nesac\n"
    )
    nvcc.chmod(0o755)


def test_an_unknown_gpu_is_refused_with_both_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _script(tmp_path, "exit 1")
    monkeypatch.setattr(compiling, "find_nvccs", lambda: [tmp_path / "bin" / "nvcc"])
    monkeypatch.setattr(nvrtc, "find", lambda toolkits: iter(()))
    with pytest.raises(DeployError, match=r"nvcc 11\.4 .*does not know this GPU, sm_120: got sm_72, sm_87"):
        compile_kernels((12, 0))


def test_a_failing_compiler_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _script(tmp_path, "echo 'gcc: not found' >&2; exit 1")
    monkeypatch.setattr(compiling, "find_nvccs", lambda: [tmp_path / "bin" / "nvcc"])
    monkeypatch.setattr(nvrtc, "find", lambda toolkits: iter(()))
    with pytest.raises(DeployError, match=r"nvcc failed \(gcc: not found\)"):
        compile_kernels((8, 7))
    (tmp_path / "bin" / "nvcc").write_text("#!/nowhere\n")
    with pytest.raises(DeployError, match=r"cannot run .*nvcc"):
        compile_kernels((8, 7))


def test_the_next_compiler_is_tried_and_all_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An old nvcc in PATH must not hide a newer toolkit, nor NVRTC."""
    write = 'for word; do last=$word; done; printf cubin > "$last"'
    _script(tmp_path / "old", "exit 1")
    _script(tmp_path / "new", write)
    new = tmp_path / "new" / "bin" / "nvcc"
    new.write_text(new.read_text().replace("11.4", "13.0").replace("sm_87", "sm_120"))
    nvccs = [tmp_path / "old" / "bin" / "nvcc", new]
    monkeypatch.setattr(compiling, "find_nvccs", lambda: nvccs)
    monkeypatch.setattr(nvrtc, "find", lambda toolkits: iter([str(tmp_path / "libnvrtc.so.1")]))
    assert compile_kernels((12, 0)) == b"cubin"
    with pytest.raises(DeployError, match=r"^kernels: nvcc 11\.4 .*; and nvcc 13\.0 .*sm_90.*; and cannot load .*rtc"):
        compile_kernels((9, 0))


def test_warnings_are_errors_in_tests_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    strict = 'case "$*" in *-Werror*) echo warned >&2; exit 1;; esac; for word; do last=$word; done; printf c > "$last"'
    _script(tmp_path, strict)
    monkeypatch.setattr(compiling, "find_nvccs", lambda: [tmp_path / "bin" / "nvcc"])
    monkeypatch.setattr(nvrtc, "find", lambda toolkits: iter(()))
    assert compile_kernels((8, 7)) == b"c"
    with pytest.raises(DeployError, match="warned"):
        compile_kernels((8, 7), strict=True)


def test_a_warning_of_nvrtc_does_not_stop_a_build() -> None:
    library = next(iter(nvrtc.find((compiling.TOOLKIT,))), None)
    if library is None:
        pytest.skip("libnvrtc is not installed (pip install nvidia-cuda-nvrtc)")
    compiler = nvrtc.Compiler.load(library)
    source = 'extern "C" __global__ void tile_one() { int unused; }'
    assert _names(compiler.cubin(source, {}, "sm_90")) == ["tile_one"]
    with pytest.raises(DeployError, match="never referenced"):
        compiler.cubin(source, {}, "sm_90", strict=True)


def test_gpus_before_volta_are_refused() -> None:
    with pytest.raises(DeployError, match=r"got a GPU of sm_61, expected sm_70 \(Volta\) or newer"):
        compile_kernels((6, 1))


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [((8, 0), (8, 0), True), ((8, 0), (8, 6), True), ((8, 9), (8, 6), False), ((8, 6), (9, 0), False),
     ((8, 7), (8, 7), True), ((8, 6), (8, 7), False), ((8, 7), (8, 9), False), ((12, 0), (12, 1), True)],
)  # fmt: skip
def test_where_a_cubin_runs(built: tuple[int, int], here: tuple[int, int], fits: bool) -> None:
    assert compiling.fits(built, here) is fits


class _Library:
    """As much of NVRTC as the first calls need."""

    class _String:
        restype: object = None

        def __call__(self, status: int) -> bytes:
            return b"NVRTC_ERROR_BUILTIN_OPERATION_FAILURE"

    nvrtcGetErrorString = _String()

    def nvrtcVersion(self, *_: object) -> int:
        return 7


def test_nvrtc_errors_are_named() -> None:
    compiler = nvrtc.Compiler(_Library())  # type: ignore[arg-type]
    with pytest.raises(DeployError, match="nvrtcVersion failed: NVRTC_ERROR_BUILTIN"):
        compiler.version()
    with pytest.raises(DeployError, match=r"has no nvrtcGetNumSupportedArchs; install CUDA 12"):
        compiler.architectures()


def test_the_sources_are_part_of_the_package() -> None:
    text = (SOURCE.parents[2] / "pyproject.toml").read_text()
    patterns = ast.literal_eval(re.findall(r'^"engines.tiling" = (.+)$', text, re.M)[0])
    packed = {path for pattern in patterns for path in SOURCE.parent.glob(pattern)}
    assert {SOURCE, *compiling.HEADERS} <= packed
    included = {
        name
        for path in SOURCE.parent.glob("t*.cu*")
        for name in re.findall(r'#include "(.+)"', path.read_text())
    }  # fmt: skip
    assert included == {path.name for path in compiling.HEADERS}
