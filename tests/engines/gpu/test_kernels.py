"""The GPU kernels, run by a C++ compiler's code: the bits of the C core, nothing read or written beside."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.kernel_cases import (
    GATHERS,
    MEAN,
    SCATTERS,
    STD,
    STITCHES,
    TAILS,
    GatherCase,
    ScatterCase,
    StitchCase,
    TailCase,
)  # fmt: skip
from benchmarks.view_cases import RESIZES, VIEWS, ResizeCase, ViewCase
from engines.contract import packed
from engines.errors import DeployError
from engines.gpu import kernels
from engines.gpu.tail import tail
from engines.gpu.views import launches
from engines.images.write import confidence_bytes
from engines.spec import MAX_BANDS
from engines.tiling import core
from engines.tiling import tail as tails
from engines.tiling.merge import MERGES
from engines.tiling.placement import Tiling
from tests.engines.gpu.emulated import Emulated, build

ROOT = Path(__file__).parents[3]
TILING = Tiling(32, 32, 24, 24)
DTYPES = ("float32", "float16")


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return Emulated(build(tmp_path_factory.mktemp("emulated") / "emulated.so"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", GATHERS, ids=str)
def test_gather_equals_the_c_core(machine: Emulated, case: GatherCase, dtype: str) -> None:
    assert case.differences(machine, dtype) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SCATTERS, ids=str)
def test_logits_go_where_their_places_want_them(machine: Emulated, case: ScatterCase, dtype: str) -> None:
    assert case.differences(machine, dtype) == 0


@pytest.mark.parametrize("bands", [False, True], ids=["whole", "bands"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", STITCHES, ids=str)
def test_stitch_equals_the_c_core(machine: Emulated, case: StitchCase, dtype: str, bands: bool) -> None:
    for confidence in (False, True):
        assert case.differences(machine, dtype, confidence, bands) == 0


def test_confidences_are_rounded_to_bytes_as_numpy_rounds_them(machine: Emulated) -> None:
    """Beside each of the 256 steps, anywhere, and what is no probability; nothing is written beyond the last."""
    near = [(np.arange(257, dtype=np.float32) - np.float32(0.5)) / np.float32(255)]
    for towards in (-np.inf, np.inf):
        for _ in range(3):
            near.append(np.nextafter(near[-1], np.float32(towards)))
        near.append(near[0])
    odd = np.float32([0, -0.0, 1, 1.5, -2, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1 - 2**-24])
    rng = np.random.default_rng(3)
    any_bits = rng.integers(0, 2**32, 5000, np.uint32).view(np.float32)
    certainty = np.concatenate([*near, odd, rng.random(100_003, np.float32), any_bits])
    out = np.full(certainty.size + 64, 77, np.uint8)
    at = machine.put(out)
    machine.launch(kernels.confidence_bytes(machine.put(certainty), at, certainty.size))
    machine.take(out, at)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(out[: certainty.size], confidence_bytes(certainty))
    assert (out[certainty.size :] == 77).all()
    assert set(out[: certainty.size]) == set(range(256))


@pytest.mark.parametrize("case", RESIZES, ids=str)
def test_an_image_is_resized_as_in_the_c_core(machine: Emulated, case: ResizeCase) -> None:
    assert case.differences(machine) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", VIEWS, ids=str)
def test_views_are_merged_as_in_the_c_core(machine: Emulated, case: ViewCase, dtype: str) -> None:
    for confidence in (False, True):
        assert case.differences(machine, dtype, confidence) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TAILS, ids=str)
def test_the_tail_equals_the_c_core(machine: Emulated, case: TailCase, dtype: str) -> None:
    assert case.shape.unfit() is None
    assert case.differences(machine, dtype) == 0


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 8, 16])
def test_samples_beside_the_first_column_and_after_the_last(machine: Emulated, ratio: int) -> None:
    """Zeros of both signs, infinities and NaN in a map's outer columns: where their weight is 0, they count as well."""
    rng, shape = np.random.default_rng(ratio), tails.TailShape(96, 48, 0, 4, 2, ((96, 48 // ratio),))
    maps = np.ones((96, 48 // ratio, 4), np.float32)
    for columns in (slice(None, 2), slice(-2, None)):
        values = rng.choice(np.float32([0, -0.0, 1, np.inf, -np.inf, np.nan]), maps[:, columns, 1].shape)
        maps[:, columns, 1] = values
    classify = np.float32([[0, 1, 0, 0], [0, -1, 0, 0]])
    weights = (np.zeros((4, 0), np.float32), np.float32([0, -0.0, 0, 0]), classify, np.float32([-0.0, 0]))
    case = tails.Tail.of(shape, *weights)
    out = np.zeros((2, 96, 48), np.float32)
    at = machine.put(out)
    held = [machine.put(array) if array.size else 256 for array in case.weights]
    machine.launch(tail(shape, "float32", machine.put(maps.reshape(-1)), held, at, 1))
    machine.take(out, at)
    expected = case.logits(maps.reshape(-1), 1)[0]
    assert np.isnan(expected).any()
    assert np.isinf(expected).any()
    assert (expected == 0).any()
    assert np.array_equal(np.isnan(out), np.isnan(expected))
    numbers = ~np.isnan(expected)
    assert np.array_equal(out[numbers].view(np.int32), expected[numbers].view(np.int32))


def test_random_tails(machine: Emulated) -> None:
    rng = np.random.default_rng(8)
    for seed in range(40):
        height, width = (int(n) for n in rng.integers(1, (8, 200)))
        maps = tuple((int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))) for _ in range(seed % 4))
        inputs = 4 * int(rng.integers(seed % 3 == 0 or not maps, 9))
        shape = tails.TailShape(height, width, inputs, 4 * int(rng.integers(1, 20)), int(rng.integers(1, 100)), maps)
        if shape.unfit() is None:
            assert TailCase(shape, 1 + seed % 3).differences(machine, DTYPES[seed % 2]) == 0, shape


def test_a_nan_of_one_map_reaches_the_logits_that_it_is_sampled_for(machine: Emulated) -> None:
    case = TAILS[0]
    maps, shape = case.maps("float32"), case.shape
    offsets, _ = packed([int(np.prod(size)) for size in shape.outputs])
    maps[offsets[3]] = np.nan  # the first pixel of the smallest map, sampled for 12 pixels each way
    out, weights = np.zeros((shape.classes, shape.height, shape.width), np.float32), case.tail().weights
    at = machine.put(out)
    machine.launch(tail(shape, "float32", machine.put(maps), [machine.put(array) for array in weights], at, 1))
    machine.take(out, at)
    expected = case.tail().logits(maps, 1)[0]
    assert np.isnan(out[:, :12, :12]).all()
    assert np.isfinite(out[:, 12:]).all()
    assert np.isfinite(out[:, :, 12:]).all()
    assert np.array_equal(np.isnan(expected), np.isnan(out))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dtype": "bfloat16"}, "got maps in bfloat16"), ({"windows": 65}, "got 65 windows"), ({"maps": 264}, "aligned"),
     ({"logits": 0}, "got addresses")],
)  # fmt: skip
def test_a_tail_that_cannot_be_launched_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"shape": TAILS[0].shape, "dtype": "float16", "maps": 256, "weights": [256] * 4, "logits": 256,
                 "windows": 1, **changes}  # fmt: skip
    with pytest.raises(DeployError, match=message):
        tail(**arguments)  # type: ignore[arg-type]


def test_random_geometries(machine: Emulated) -> None:
    rng = np.random.default_rng(3)
    ways = set()
    for seed in range(150):
        low = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
        window = [int(n * 2 ** rng.integers(0, 6)) for n in low]
        if seed % 3 == 0:
            window = [4 * n for n in low]
        if seed % 5 == 0:
            window = [int(n) for n in rng.integers(1, 90, 2)]
        stride = [int(rng.integers(max(1, n // 4), n + 1)) for n in window]
        if seed % 3 == 0:
            stride = [max(4, n // 4 * 4) for n in stride]
        size = (int(rng.integers(1, 150)), int(rng.integers(1, 150)))
        if seed % 2 == 0:
            size = (4 * (size[0] // 4) + 4, 4 * (size[1] // 4) + 4)
        tiling = Tiling(window[0], window[1], stride[0], stride[1], "uniform" if seed % 4 else "gaussian")
        case = StitchCase(int(rng.integers(1, 9)), low, tiling, size, seed, seed % 3)
        assert case.differences(machine, DTYPES[seed % 2], bool(seed % 3), seed % 7 < 4) == 0, case
        ways.add(_launch(case).kernel)
    assert len({way for way in ways if "threshold" not in way}) == 5


def _launch(case: StitchCase, **changes: object) -> kernels.Launch:
    tops, lefts = case.tiling.placements(*case.size)
    arguments = {
        "logits": 256, "dtype": "float32", "low": case.low, "classes": case.classes, "ring": len(tops),
        "pitch": len(lefts), "tiling": case.tiling, "size": case.size, "rows": (0, case.size[0]),
        "held": range(len(tops)), "weights": (256, 512) if case.tiling.blend != "uniform" else None, "labels": 256,
        "labels_stride": case.size[1], "confidence": 0, "confidence_stride": 0, "status": 256, **changes,
    }  # fmt: skip
    return kernels.stitch(**arguments)  # type: ignore[arg-type]


def test_nothing_is_read_or_written_beside_what_was_allocated(tmp_path: Path) -> None:
    """Every case again under the address and undefined-behaviour sanitizers, on exactly sized memory."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    library = build(
        tmp_path / "emulated.so", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    )  # fmt: skip
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {**os.environ, "LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.gpu.emulated", str(library)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def _stitch(machine: Emulated, logits: np.ndarray, case: StitchCase, **changes: object) -> tuple[np.ndarray, int]:
    """Labels of the whole image, and the status."""
    labels, status = np.full(case.size, 99, np.uint8), np.zeros(1, np.int32)
    at = machine.put(logits), machine.put(labels), machine.put(status)
    machine.launch(_launch(case, logits=at[0], labels=at[1], status=at[2], **changes))
    machine.take(labels, at[1])
    machine.take(status, at[2])
    return labels, int(status[0])


@pytest.mark.parametrize("low", [(8, 8), (4, 4), (16, 16), (32, 32), (9, 10)], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_logit_is_reported(machine: Emulated, low: tuple[int, int], value: float) -> None:
    case = StitchCase(5, low, TILING, (80, 57))
    logits = case.logits("float32")
    assert _stitch(machine, logits, case)[1] == 0
    for place in ((0, 0, 0, 0, 0), (2, 1, 4, low[0] - 1, low[1] - 1), (1, 1, 2, 1, 1)):
        wrong = logits.copy()
        wrong[place] = value
        labels, status = _stitch(machine, wrong, case)
        assert status == kernels.NOT_FINITE
        assert labels.max() < 5
        with pytest.raises(DeployError, match="NaN or infinite"):
            case.expected(wrong, False)


@pytest.mark.parametrize("low", [(8, 8), (4, 4), (32, 32)], ids=str)
def test_a_sum_that_overflows_is_reported(machine: Emulated, low: tuple[int, int]) -> None:
    case = StitchCase(3, low, Tiling(32, 32, 16, 16), (48, 48))
    logits = np.full_like(case.logits("float32"), 3e38)
    assert _stitch(machine, logits, case)[1] == kernels.NOT_FINITE


def test_the_status_is_added_to(machine: Emulated) -> None:
    case = StitchCase(3, (8, 8), TILING, (32, 32))
    status = np.full(1, 1 << 20, np.int32)
    logits, labels = np.full((1, 1, 3, 8, 8), np.nan, np.float32), np.zeros((32, 32), np.uint8)
    at = machine.put(status)
    machine.launch(_launch(case, logits=machine.put(logits), labels=machine.put(labels), status=at))
    machine.take(status, at)
    assert status[0] == 1 << 20 | kernels.NOT_FINITE


@pytest.mark.parametrize("low", [(8, 8), (4, 4), (16, 16)], ids=str)
def test_only_held_rows_are_read(machine: Emulated, low: tuple[int, int]) -> None:
    """Rows 24..56 from the second row of windows alone, although the first and third touch them."""
    case = StitchCase(5, low, TILING, (80, 57))
    logits = case.logits("float32")
    logits[[0, 2]] = np.nan
    labels, status = _stitch(machine, logits, case, rows=(24, 56), held=range(1, 2))
    _, lefts = TILING.placements(*case.size)
    expected, _ = core.stitch(list(logits[1]), [24] * len(lefts), lefts, (32, 32), case.size, rows=(24, 56))
    assert status == 0
    assert np.array_equal(labels[:32], expected)
    assert (labels[32:] == 99).all()
    _, status = _stitch(machine, logits, case, rows=(23, 56), held=range(1, 2))
    assert status == kernels.UNCOVERED
    _, status = _stitch(machine, logits, case, rows=(24, 57), held=range(1, 2))
    assert status == kernels.UNCOVERED


def test_an_exact_tie_goes_to_the_lowest_class(machine: Emulated) -> None:
    for low in ((8, 8), (4, 4), (32, 32)):
        case = StitchCase(4, low, TILING, (32, 32))
        logits = np.zeros((1, 1, 4, *low), np.float32)
        logits[:, :, [1, 3]] = 1
        assert (_stitch(machine, logits, case)[0] == 1).all()


@pytest.mark.parametrize("low", [(8, 8), (4, 4), (16, 16), (32, 32)], ids=str)
def test_zeros_of_both_signs_are_the_same(machine: Emulated, low: tuple[int, int]) -> None:
    """exp(-d) takes d = -0 for a negative number: sums must be +0 where they are 0."""
    for size in ((32, 32), (56, 80)):
        case = StitchCase(4, low, TILING, size)
        logits = np.random.default_rng(2).choice(np.float32([-0.0, 0.0]), case.logits("float32").shape)
        certainty = np.zeros(size, np.float32)
        at = machine.put(certainty)
        _stitch(machine, logits, case, confidence=at, confidence_stride=size[1])
        machine.take(certainty, at)
        assert (certainty == 0.25).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"classes": 256}, "1 to 255"),
        ({"rows": (0, 81)}, "a part of it"),
        ({"rows": (5, 5)}, "a part of it"),
        ({"held": range(0, 4)}, "a part of"),
        ({"held": range(0, 0)}, "a part of"),
        ({"ring": 2}, "in a ring of 2"),
        ({"pitch": 1}, "of 1 windows"),
        ({"labels_stride": 56}, "strides"),
        ({"confidence": 256}, "strides"),
        ({"logits": 0}, "address 0 for logits"),
        ({"weights": (256, 0)}, "address 0 for weight_x"),
    ],
)
def test_stitch_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        _launch(StitchCase(5, (8, 8), TILING, (80, 57)), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "uint8"}, "uint8"),
        ({"padding": "wrap"}, "padding"),
        ({"order": (0, 0, 1)}, "order"),
        ({"std": (1, 0, 1)}, "std above 0"),
        ({"windows": 0}, "0 windows"),
        ({"windows": 65}, "65 windows"),
        ({"out": 0}, "address 0 for out"),
        ({"places": 0}, "address 0 for places"),
    ],
)
def test_gather_refuses(changes: dict[str, object], message: str) -> None:
    arguments = {
        "places": 256, "windows": 1, "window": (10, 10), "mean": MEAN, "std": STD, "order": (0, 1, 2),
        "padding": "zero", "out": 256, "dtype": "float32", **changes,
    }  # fmt: skip
    with pytest.raises(DeployError, match=message):
        kernels.gather(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lefts": (0, 41)}, "41 does not fit"),
        ({"top": 31}, "row 31 does not fit"),
        ({"top": 0, "first_row": 1}, "from row 1 on"),
        ({"image": 0}, "address 0 for image"),
    ],
)
def test_places_outside_of_the_image_are_refused(changes: dict[str, object], message: str) -> None:
    arguments = {
        "image": 256, "size": (40, 50), "strides": (150, 3, 1), "top": 3, "lefts": (0,), "window": (10, 10),
        "logits": (256,), "arrived": 256, **changes,
    }  # fmt: skip
    with pytest.raises(DeployError, match=message):
        kernels.place(**arguments)  # type: ignore[arg-type]


def test_huge_images_do_not_need_more_blocks_than_a_grid_has() -> None:
    case = StitchCase(3, (256, 256), Tiling(1024, 1024, 768, 768), (2**23, 4))
    assert _launch(case).grid == (1, 65535, 1)


def test_rows_beyond_the_grid_are_stitched_too(machine: Emulated) -> None:
    case = StitchCase(3, (8, 8), TILING, (80, 57))
    logits = case.logits("float32")
    expected = _stitch(machine, logits, case)[0]
    labels, status = np.full(case.size, 99, np.uint8), np.zeros(1, np.int32)
    at = machine.put(labels)
    launch = _launch(case, logits=machine.put(logits), labels=at, status=machine.put(status))
    machine.launch(kernels.Launch(launch.kernel, (launch.grid[0], 2, 1), launch.block, launch.argument))
    machine.take(labels, at)
    assert np.array_equal(labels, expected)


def test_blocks_are_those_that_registers_are_limited_for() -> None:
    source = (ROOT / "engines" / "tiling" / "tile.cu").read_text()
    for argument, block in (
        ("gather", kernels.GATHER_BLOCK), ("scatter", kernels.SCATTER_BLOCK), ("stitch", kernels.STITCH_BLOCK)
    ):  # fmt: skip
        threads = re.findall(rf"tile_{argument}_launch, (\d+),", source)
        assert threads
        assert {int(number) for number in threads} == {np.prod(block)}
    tails_of = re.findall(r"^TAIL_KERNELS\((\d+), (\d+), (\d+), \d\)", source, re.M)
    assert [tuple(map(int, numbers)) for numbers in tails_of] == [
        (block.classes, block.groups, block.threads) for block in tails.BLOCKS
    ]


def test_layouts_are_the_compilers(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    lines, expected = [], []
    for kind, layout in (
        ("tile_window", kernels.PLACE), ("tile_gather_launch", kernels.GATHER), ("tail_launch", tails.LAUNCH),
        ("tile_scatter_launch", kernels.SCATTER), ("tile_stitch_launch", kernels.STITCH),
        ("tile_resize_launch", launches.RESIZE), ("tile_views_launch", launches.VIEWS),
        ("tile_confidence_launch", kernels.CONFIDENCE),
    ):  # fmt: skip
        lines.append(f'printf("%zu\\n", sizeof({kind}));')
        expected.append(layout.itemsize)
        assert layout.fields is not None
        for name, field in layout.fields.items():
            lines.append(f'printf("%zu %zu\\n", offsetof({kind}, {name}), sizeof((({kind} *)0)->{name}));')
            expected += [field[1], field[0].itemsize]
    lines.append('printf("%d %d %d\\n", TILE_MAX_WINDOWS, TILE_STATUS_NOT_FINITE, TILE_STATUS_UNCOVERED);')
    expected += [kernels.MAX_WINDOWS, kernels.NOT_FINITE, kernels.UNCOVERED]
    lines.append('printf("%d %d\\n", TILE_MAX_BANDS, TILE_MEANS_CLASSES);')
    expected += [MAX_BANDS, kernels.MEANS_CLASSES]
    lines.append('printf("%d %d %d %d\\n", TILE_VIEWS_FIRST, TILE_VIEWS_LAST, VIEWS_MEAN, VIEWS_MAX);')
    expected += [launches.FIRST, launches.LAST, MERGES.index("mean"), MERGES.index("max")]
    lines.append('printf("%d %d %d\\n", TAIL_MAPS, TAIL_PIXELS, TAIL_CHUNK);')
    expected += [tails.MAPS, tails.PIXELS, tails.CHUNK]
    source = tmp_path / "layout.c"
    source.write_text(
        '#include <stdio.h>\n#include "tail.h"\n#include "tile_views.h"\n#include "tile_confidence.h"\n'
        + "int main(void) {\n"
        + "\n".join(lines)
        + "\n}\n"
    )
    program = tmp_path / "layout"
    subprocess.run(
        ["gcc", "-std=c11", "-I", str(ROOT / "engines" / "tiling"), str(source), "-o", str(program)], check=True
    )
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    assert [int(word) for word in printed.split()] == expected


def test_halves_are_numpys(tmp_path: Path) -> None:
    """All of them to float, and floats around every one of them to half."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    source = tmp_path / "half.c"
    source.write_text(
        '#include "tile.h"\n'
        "void widen(const uint16_t *h, float *f, int n) { while (n--) f[n] = tile_half_to_float(h[n]); }\n"
        "void narrow(const float *f, uint16_t *h, int n) { while (n--) h[n] = tile_float_to_half(f[n]); }\n"
    )
    library = tmp_path / "half.so"
    command = [
        "gcc",
        "-std=c11",
        "-O2",
        "-I",
        str(ROOT / "engines" / "tiling"),
        "-shared",
        "-fPIC",
        str(source),
        "-o",
        str(library),
    ]
    subprocess.run(command, check=True)
    code = ctypes.CDLL(str(library))
    halves = np.arange(65536, dtype=np.uint16)
    wide = np.empty(65536, np.float32)
    code.widen(ctypes.c_void_p(halves.ctypes.data), ctypes.c_void_p(wide.ctypes.data), 65536)
    expected = halves.view(np.float16).astype(np.float32)
    assert np.array_equal(wide.view(np.uint32)[~np.isnan(expected)], expected.view(np.uint32)[~np.isnan(expected)])
    assert np.isnan(wide[np.isnan(expected)]).all()
    finite = np.sort(expected[np.isfinite(expected)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    rng = np.random.default_rng(0)
    floats = np.concatenate(
        [expected, middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf)),
         np.float32([65519.996, 65520, 1e30, 2.0**-25, np.nextafter(np.float32(2.0**-25), np.float32(1)), 1e-45, -0.0]),
         rng.integers(0, 2**32, 300_000, np.uint32).view(np.float32)]
    )  # fmt: skip
    narrow = np.empty(floats.size, np.uint16)
    code.narrow(ctypes.c_void_p(floats.ctypes.data), ctypes.c_void_p(narrow.ctypes.data), floats.size)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = floats.astype(np.float16)
    assert np.array_equal(narrow[~np.isnan(floats)], wanted.view(np.uint16)[~np.isnan(floats)])
    assert np.isnan(narrow.view(np.float16)[np.isnan(floats)]).all()
