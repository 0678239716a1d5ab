"""The C interface: its example, compiled as it says, gives the masks of the runtime."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.segmenter import Segmenter
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "tiling.c"
HEADER = ROOT / "engines" / "tiling" / "edgeseg_tiling.h"
compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the command of its first comment, and every warning an error."""
    words = re.search(r"cc (.*?) -o tiling", EXAMPLE.read_text(), re.S)
    assert words
    program = tmp_path_factory.mktemp("c") / "tiling"
    flags = shlex.split(re.sub(r"\\\n \*", "", words[1]))
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", *flags, "-o", program], cwd=ROOT, check=True)
    return program


class _Subsampled:
    def run(self, windows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(windows[:, :, ::4, ::4])


@compiler
@pytest.mark.parametrize("size", [(600, 700), (256, 256), (100, 900), (1, 1), (449, 257)])
def test_the_example_gives_the_runtime_s_masks(example: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "in.ppm")
    subprocess.run([example, tmp_path / "in.ppm", tmp_path / "out.pgm"], check=True)
    spec = ModelSpec("test", "", ("r", "g", "b"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    expected = Segmenter.on_host(_Subsampled(), spec, Tiling(256, 256, 192, 192)).segment(image).labels
    labels = np.asarray(Image.open(tmp_path / "out.pgm"))
    assert len(np.unique(expected)) == min(3, image.size // 3)
    assert (labels == expected).mean() > 0.9999  # 1 / std is rounded elsewhere in the example


@compiler
def test_it_is_strict_c_and_its_header_c_plus_plus(tmp_path: Path) -> None:
    """Held to ISO C, and without a word of threads, as CMake compiles where threads are a part of the C library."""
    checked = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I", str(HEADER.parent)]
    sources = [HEADER.with_name("tile.c"), HEADER.with_name("threads.c"), EXAMPLE]
    subprocess.run(["cc", "-std=c11", *checked, *sources], check=True)
    if shutil.which("c++"):
        (tmp_path / "a.cpp").write_text(
            '#include "edgeseg_tiling.h"\nint main() { tile_plan p{}; return (int)tile_stitch_workspace(&p, 0); }\n'
        )
        subprocess.run(["c++", "-std=c++17", *checked, tmp_path / "a.cpp"], check=True)


@compiler
def test_the_example_says_what_it_expects(example: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.ppm").write_bytes(b"P6 10 10 255\n" + bytes(50))
    done = subprocess.run([example, tmp_path / "cut.ppm", tmp_path / "out"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"tiling: {tmp_path / 'cut.ppm'} ends too soon\n")
    assert subprocess.run([example], capture_output=True).returncode == 2


@compiler
def test_windows_lie_where_the_runtime_puts_them(tmp_path: Path) -> None:
    """For thousands of sizes, and nothing where a stride would leave pixels out."""
    program = tmp_path / "axis"
    (tmp_path / "axis.c").write_text(
        '#include "edgeseg_tiling.h"\n#include <stdio.h>\n#include <stdlib.h>\n'
        'int main(void) { int l, w, s; while (scanf("%d %d %d", &l, &w, &s) == 3) { int32_t at[4096];\n'
        "int n = tile_axis(l, w, s, NULL); if (tile_axis(l, w, s, at) != n) return 1;\n"
        'for (int i = 0; i < n; i++) printf("%d ", at[i]); printf("\\n"); } return 0; }\n'
    )
    sources = [ROOT / "engines" / "tiling" / name for name in ("tile.c", "threads.c")]
    command = [
        "cc",
        "-O1",
        "-fsanitize=undefined",
        f"-I{HEADER.parent}",
        tmp_path / "axis.c",
        *sources,
        "-lm",
        "-pthread",
    ]
    subprocess.run([*command, "-o", program], check=True)
    rng = np.random.default_rng(0)
    cases = [(int(rng.integers(1, 3000)), int(rng.integers(1, 300)), int(rng.integers(1, 300))) for _ in range(3000)]
    cases += [(2**31 - 1, 2**31 - 1, 2**31 - 1), (0, 5, 5), (5, 5, 0)]
    text = "\n".join(" ".join(map(str, case)) for case in cases)
    lines = subprocess.run([program], input=text, capture_output=True, text=True, check=True).stdout.splitlines()
    for (length, window, stride), line in zip(cases, lines, strict=True):
        right = [] if not 1 <= stride <= window or length < 1 else [0]
        if right and window <= 300:
            right = Tiling(window, window, stride, stride).placements(1, length)[1]
        assert [int(word) for word in line.split()] == right


@compiler
def test_the_header_is_c_plus_plus_too_and_needs_nothing_else(tmp_path: Path) -> None:
    for language, standard in (("c", "c11"), ("c++", "c++11")):
        (tmp_path / "a.c").write_text(
            '#include "edgeseg_tiling.h"\nint main(void) { return tile_build_info() == 0; }\n'
        )
        command = ["cc", "-x", language, f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
        subprocess.run([*command, f"-I{HEADER.parent}", tmp_path / "a.c"], check=True)
