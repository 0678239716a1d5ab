"""The C core outside Python: under sanitizers, on an emulated ARM64, as strict C, and its header in CUDA."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SELFTEST = ROOT / "tests" / "engines" / "tile_selftest.c"
FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-fno-trapping-math", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wno-sign-conversion", "-Wshadow"]


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_strict_c_without_warnings(tmp_path: Path) -> None:
    _run(_tool("gcc"), *FLAGS, *WARNINGS, "-c", ROOT / "engines" / "tile.c", "-o", tmp_path / "tile.o")


def test_selftest_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    sanitizers = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DTILE_NO_CLONES"]
    _run(_tool("gcc"), *FLAGS, *sanitizers, SELFTEST, "-o", tmp_path / "selftest", "-lm")
    assert "portable: 0 failed" in _run(tmp_path / "selftest")


def test_selftest_under_the_thread_sanitizer(tmp_path: Path) -> None:
    _run(_tool("gcc"), *FLAGS, "-g", "-fsanitize=thread", "-DTILE_NO_CLONES", SELFTEST, "-o", tmp_path / "t", "-lm")
    # Without address-space randomisation: the sanitizer's shadow memory collides with it on some kernels.
    assert ": 0 failed" in _run(_tool("setarch"), "-R", tmp_path / "t")


def test_selftest_as_it_is_shipped(tmp_path: Path) -> None:
    _run(_tool("gcc"), *FLAGS, "-O3", SELFTEST, "-o", tmp_path / "selftest", "-lm")
    assert ": 0 failed" in _run(tmp_path / "selftest")


def test_selftest_on_emulated_arm64(tmp_path: Path) -> None:
    compiler, emulator = _tool("aarch64-linux-gnu-gcc"), _tool("qemu-aarch64")
    _run(compiler, *FLAGS, "-O3", "-static", SELFTEST, "-o", tmp_path / "selftest", "-lm")
    assert "arm64, neon: 0 failed" in _run(emulator, tmp_path / "selftest")


@pytest.mark.parametrize("arch", ["sm_87", "sm_90", "sm_110", "sm_120"])
def test_the_arithmetic_compiles_as_cuda(tmp_path: Path, arch: str) -> None:
    source = tmp_path / "probe.cu"
    source.write_text(
        '#include "tile.h"\n'
        'extern "C" __global__ void probe(float *out, const unsigned char *in, int n)\n'
        "{\n"
        "    int i0, i1;\n"
        "    float lambda = tile_source(3, 256, 1024, &i0, &i1);\n"
        "    out[0] = tile_normalise(in[tile_pad_index(n, 7, TILE_PAD_REFLECT)], 2.0f, lambda)\n"
        "             + tile_exp(-1.0f) + (float)tile_not_finite(lambda) + (float)(i0 + i1);\n"
        "}\n"
    )
    _run(_tool("nvcc"), "-cubin", f"-arch={arch}", "--fmad=false", "-Werror", "all-warnings", "-I", ROOT / "engines",
         source, "-o", tmp_path / "probe.cubin")  # fmt: skip
