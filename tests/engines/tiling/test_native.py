"""The C core outside Python: under sanitizers, on an emulated ARM64, as strict C, and its header in CUDA."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TILING = Path(__file__).parents[3] / "engines" / "tiling"
SELFTEST = Path(__file__).with_name("tile_selftest.c")
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
    for name in ("tile", "views", "resize", "tail", "counts", "threads"):
        _run(_tool("gcc"), *FLAGS, *WARNINGS, "-c", TILING / f"{name}.c", "-o", tmp_path / f"{name}.o")


def test_selftest_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    sanitizers = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DTILE_NO_CLONES"]
    _run(_tool("gcc"), *FLAGS, *sanitizers, SELFTEST, "-o", tmp_path / "selftest", "-lm")
    assert "portable: 0 failed" in _run(tmp_path / "selftest")


def test_selftest_under_the_thread_sanitizer(tmp_path: Path) -> None:
    _run(_tool("gcc"), *FLAGS, "-g", "-fsanitize=thread", "-DTILE_NO_CLONES", SELFTEST, "-o", tmp_path / "t", "-lm")
    # Without address-space randomisation: the sanitizer's shadow memory collides with it on some kernels.
    # It would also end forked children that start threads, which the self-test's do.
    assert ": 0 failed" in _run("env", "TSAN_OPTIONS=die_after_fork=0", _tool("setarch"), "-R", tmp_path / "t")


def _digest(output: str) -> str:
    assert ": 0 failed" in output, output
    return next(line for line in output.splitlines() if line.startswith("digest"))


@pytest.fixture(scope="module")
def shipped_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the self-test's results, compiled as it is shipped: with this CPU's widest vectors."""
    program = tmp_path_factory.mktemp("selftest") / "selftest"
    _run(_tool("gcc"), *FLAGS, "-O3", SELFTEST, "-o", program, "-lm")
    return _digest(_run(program))


@pytest.mark.parametrize("flags", [["-O0"], ["-O3"], ["-O3", "-mavx2", "-mfma"]], ids=" ".join)
def test_every_instruction_set_gives_the_same_bits(flags: list[str], shipped_digest: str, tmp_path: Path) -> None:
    if "-mavx2" in flags and " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AVX2")
    _run(_tool("gcc"), *FLAGS, "-DTILE_NO_CLONES", *flags, SELFTEST, "-o", tmp_path / "selftest", "-lm")
    assert _digest(_run(tmp_path / "selftest")) == shipped_digest


def test_selftest_on_emulated_arm64(shipped_digest: str, tmp_path: Path) -> None:
    compiler, emulator = _tool("aarch64-linux-gnu-gcc"), _tool("qemu-aarch64")
    # An emulated process cannot fork while it has several threads.
    _run(compiler, *FLAGS, "-O3", "-static", "-DSELFTEST_NO_FORK", SELFTEST, "-o", tmp_path / "selftest", "-lm")
    output = _run(emulator, tmp_path / "selftest")
    assert "arm64, neon: 0 failed" in output
    assert _digest(output) == shipped_digest


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_110", "sm_120"])
def test_the_arithmetic_compiles_as_cuda(tmp_path: Path, arch: str) -> None:
    source = tmp_path / "probe.cu"
    source.write_text(
        '#include "tile.h"\n'
        'extern "C" __global__ void probe(float *out, const unsigned char *in, int n)\n'
        "{\n"
        "    int i0, i1;\n"
        "    float lambda = tile_source(3, 256, 1024, &i0, &i1);\n"
        "    out[0] = tile_normalise(in[tile_pad_index(n, 7, TILE_PAD_REFLECT)], 2.0f, lambda)\n"
        "             + tile_exp_minus(1.0f) + (float)tile_not_finite(lambda) + (float)(i0 + i1);\n"
        "    out[1] = tile_lerp(out[2], out[3], 1.0f - lambda, lambda) + tile_phase_source(n, 4, &i0);\n"
        "    i0 = (int)tile_row_vertical(out, out + 9, lambda, lambda, i0, i1, out + 18);\n"
        "    tile_row_phase(out + 18, lambda, nullptr, n, out);\n"
        "    tile_row_table(out + 18, &i0, &i1, out, out + 9, 1, out + 27);\n"
        "    tile_row_argmax(out, 1, 1, out + 9, &i0);\n"
        "    tile_row_confidence(out, 9, 3, 1, out + 36, out + 45, out + 54);\n"
        "}\n"
    )
    _run(_tool("nvcc"), "-cubin", f"-arch={arch}", "--fmad=false", "-Werror", "all-warnings", "-I", TILING,
         source, "-o", tmp_path / "probe.cubin")  # fmt: skip
