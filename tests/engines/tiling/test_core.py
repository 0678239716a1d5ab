"""The C tiling core against PyTorch (mmsegmentation's slide mode written out), numpy, SciPy and the float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import windows
from scipy.special import softmax

from engines.errors import DeployError
from engines.tiling import core
from engines.tiling.placement import Tiling
from tests.engines import tile_reference

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
NEAR_TIE = 1e-4


def _slide(logits: list[np.ndarray], tops: list[int], lefts: list[int], window, size) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """(K, H, W): what mmsegmentation averages, padding of smaller images cut off afterwards."""
    height, width = max(size[0], window[0]), max(size[1], window[1])
    total, count = torch.zeros(1, logits[0].shape[0], height, width), torch.zeros(1, 1, height, width)
    for values, top, left in zip(logits, tops, lefts, strict=True):
        crop = F.interpolate(torch.from_numpy(values)[None], window, mode="bilinear", align_corners=False)
        total += F.pad(crop, (left, width - left - window[1], top, height - top - window[0]))
        count[:, :, top : top + window[0], left : left + window[1]] += 1
    assert (count > 0).all()
    return (total / count)[0, :, : size[0], : size[1]]


def _case(seed: int, classes: int, low: tuple[int, int], tiling: Tiling, size: tuple[int, int]):  # type: ignore[no-untyped-def]
    rows, columns = tiling.placements(*size)
    tops = [top for top in rows for _ in columns]
    lefts = [left for _ in rows for left in columns]
    rng = np.random.default_rng(seed)
    logits = [3 * rng.standard_normal((classes, *low), dtype=np.float32) for _ in tops]
    return logits, tops, lefts, (tiling.window_h, tiling.window_w)


CASES = [
    # classes, logits, tiling, image
    (19, (16, 16), Tiling(64, 64, 48, 48), (100, 180)),  # a quarter, as SegFormer
    (19, (16, 24), Tiling(64, 96, 48, 64), (111, 333)),
    (19, (8, 8), Tiling(128, 128, 96, 96), (300, 200)),  # a sixteenth, as SETR
    (5, (64, 64), Tiling(64, 64, 48, 48), (100, 70)),  # full resolution
    (3, (17, 23), Tiling(61, 90, 40, 70), (150, 200)),  # not a whole ratio
    (3, (90, 70), Tiling(60, 61, 40, 50), (99, 99)),  # logits finer than pixels
    (4, (60, 60), Tiling(60, 120, 40, 70), (100, 261)),  # full resolution down, a half across
    (4, (20, 10), Tiling(60, 60, 40, 50), (99, 131)),  # whole ratios that are no powers of two
    (3, (2, 2), Tiling(64, 64, 40, 27), (99, 131)),  # a thirty-second, and odd lefts
    (3, (2, 2), Tiling(128, 128, 100, 100), (130, 230)),  # a sixty-fourth
    (2, (16, 16), Tiling(64, 64, 10, 17), (90, 130)),  # up to twenty-odd windows over a pixel
    (150, (16, 16), Tiling(64, 64, 48, 48), (70, 90)),
    (255, (8, 8), Tiling(32, 32, 24, 24), (33, 70)),
    (19, (16, 16), Tiling(64, 64, 48, 48), (20, 30)),  # smaller than the window both ways
    (19, (16, 16), Tiling(64, 64, 48, 48), (20, 200)),  # and one way
    (19, (16, 16), Tiling(64, 64, 48, 48), (1, 1)),
    (4, (1, 1), Tiling(16, 16, 12, 12), (1, 100)),
    (7, (256, 256), Tiling(1024, 1024, 768, 768), (1030, 1537)),  # several chunks, odd phases
]


@pytest.mark.parametrize(("classes", "low", "tiling", "size"), CASES)
def test_labels_equal_slide_mode(classes: int, low: tuple[int, int], tiling: Tiling, size: tuple[int, int]) -> None:
    logits, tops, lefts, window = _case(0, classes, low, tiling, size)
    labels, certainty = core.stitch(logits, tops, lefts, window, size, confidence=True)
    expected = _slide(logits, tops, lefts, window, size).numpy()
    top2 = np.partition(expected, classes - 2, axis=0)[-2:]
    clear = np.abs(top2[1] - top2[0]) >= NEAR_TIE
    assert clear.mean() > 0.999
    assert np.array_equal(labels[clear], expected.argmax(0)[clear])
    np.testing.assert_allclose(certainty, softmax(expected.astype(np.float64), axis=0).max(0), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("blend", ["gaussian", "hann"])
@pytest.mark.parametrize(("classes", "low", "tiling", "size"), CASES[:9])
def test_smooth_weights_equal_the_oracle(blend: str, classes: int, low, tiling: Tiling, size) -> None:  # type: ignore[no-untyped-def]
    logits, tops, lefts, window = _case(1, classes, low, tiling, size)
    weights = core.blend_weights(blend, *window)
    assert weights is not None
    assert min(weights[0].min(), weights[1].min()) > 0
    labels, certainty = core.stitch(logits, tops, lefts, window, size, weights=weights, confidence=True)
    expected = tile_reference.scores(logits, tops, lefts, window, size, weights)
    top2 = np.sort(expected, axis=0)[-2:]
    clear = top2[1] - top2[0] >= NEAR_TIE
    assert np.array_equal(labels[clear], expected.argmax(0)[clear])
    # Positions are float32, as PyTorch's are: exact at ratios that are powers of two, else off by up to 1e-5.
    exact = all(w % n == 0 and (w // n).bit_count() == 1 for w, n in zip(window, low, strict=True))
    np.testing.assert_allclose(certainty, tile_reference.confidence(expected), atol=1e-5 if exact else 5e-5)


def test_the_oracle_itself_equals_pytorch() -> None:
    for low, size in (((16, 16), (64, 64)), ((17, 23), (61, 90)), ((90, 70), (60, 61)), ((1, 1), (5, 7))):
        values = np.random.default_rng(0).standard_normal((3, *low))
        expected = F.interpolate(torch.from_numpy(values)[None], size, mode="bilinear", align_corners=False)[0]
        np.testing.assert_allclose(tile_reference.resize(values, size), expected.numpy(), atol=1e-12)


def test_random_geometries() -> None:
    rng = np.random.default_rng(7)
    for seed in range(120):
        window = rng.integers(1, 70, 2)
        stride = [int(rng.integers(max(1, w // 4), w + 1)) for w in window]
        tiling = Tiling(int(window[0]), int(window[1]), *stride)
        low = (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
        if seed % 2:  # half of them with ratios that are powers of two, which take another path
            h, w = (n * 2 ** int(rng.integers(0, 6)) for n in low)
            tiling = Tiling(h, w, h // 2 + 1, int(rng.integers(w // 3, w)) + 1)
        size = (int(rng.integers(1, 150)), int(rng.integers(1, 150)))
        logits, tops, lefts, shape = _case(seed, int(rng.integers(2, 9)), low, tiling, size)
        labels, _ = core.stitch(logits, tops, lefts, shape, size, threads=2)
        expected = tile_reference.scores(logits, tops, lefts, shape, size)
        top2 = np.sort(expected, axis=0)[-2:]
        clear = top2[1] - top2[0] >= NEAR_TIE
        assert np.array_equal(labels[clear], expected.argmax(0)[clear]), (seed, tiling, low, size)


def test_bands_and_threads_do_not_change_a_bit() -> None:
    logits, tops, lefts, window = _case(2, 19, (16, 16), Tiling(64, 64, 48, 48), (150, 210))
    whole = core.stitch(logits, tops, lefts, window, (150, 210), confidence=True, threads=1)
    many = core.stitch(logits, tops, lefts, window, (150, 210), confidence=True, threads=7)
    assert np.array_equal(whole[0], many[0])
    assert np.array_equal(whole[1], many[1])  # type: ignore[arg-type]
    for start, stop in ((0, 1), (1, 48), (48, 149), (149, 150)):
        touching = [i for i, top in enumerate(tops) if top < stop and top + 64 > start]
        part = core.stitch(
            [logits[i] for i in touching], [tops[i] for i in touching], [lefts[i] for i in touching], window,
            (150, 210), rows=(start, stop), confidence=True,
        )  # fmt: skip
        assert np.array_equal(part[0], whole[0][start:stop])
        assert np.array_equal(part[1], whole[1][start:stop])  # type: ignore[index, arg-type]


def test_an_exact_tie_goes_to_the_lowest_class() -> None:
    logits = np.zeros((4, 8, 8), np.float32)
    logits[1] = logits[3] = 1
    labels, certainty = core.stitch([logits], [0], [0], (32, 32), (32, 32), confidence=True)
    assert (labels == 1).all()
    np.testing.assert_allclose(certainty, np.e / (2 * np.e + 2), rtol=1e-6)


def test_confidence_is_right_for_large_logits() -> None:
    logits = np.zeros((3, 2, 2), np.float32)
    logits[0], logits[1], logits[2] = 1000, 999, -1000
    _, certainty = core.stitch([logits], [0], [0], (8, 8), (8, 8), confidence=True)
    np.testing.assert_allclose(certainty, 1 / (1 + np.exp(-1)), rtol=1e-6)


def test_results_go_where_they_are_asked_to() -> None:
    logits, tops, lefts, window = _case(3, 5, (16, 16), Tiling(64, 64, 48, 48), (80, 100))
    labels = np.full((90, 130), 77, np.uint8)
    certainty = np.full((90, 130), 7, np.float32)
    core.stitch(logits, tops, lefts, window, (80, 100), labels=labels[5:85, 10:110], confidence=certainty[5:85, 10:110])
    expected = core.stitch(logits, tops, lefts, window, (80, 100), confidence=True)
    assert np.array_equal(labels[5:85, 10:110], expected[0])
    assert np.array_equal(certainty[5:85, 10:110], expected[1])  # type: ignore[arg-type]
    labels[5:85, 10:110], certainty[5:85, 10:110] = 77, 7
    assert (labels == 77).all()
    assert (certainty == 7).all()


IMAGE = np.random.default_rng(4).integers(0, 256, (50, 70, 3), np.uint8)


@pytest.mark.parametrize(
    "image",
    [IMAGE, IMAGE[::-1], IMAGE[:, ::-1, ::-1], IMAGE[::2, 1::3], np.asfortranarray(IMAGE),
     np.dstack([IMAGE, IMAGE])[:, :, 2:5], IMAGE.transpose(1, 0, 2)],
    ids=["plain", "flipped", "mirrored-bgr", "subsampled", "fortran", "of-six-channels", "transposed"],
)  # fmt: skip
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_gather_reads_any_strides(image: np.ndarray, order: tuple[int, int, int]) -> None:
    for top, left, window in ((0, 0, image.shape[:2]), (3, 5, (10, 12)), (image.shape[0] - 7, 2, (7, 9))):
        got = core.gather(image, top, left, window, MEAN, STD, order=order)
        expected = tile_reference.gather(image, top, left, window, MEAN, STD, order=order)
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("padding", ["zero", "edge", "reflect"])
@pytest.mark.parametrize("size", [(50, 70), (3, 2), (1, 1), (1, 40), (64, 5)])
def test_gather_pads_what_lies_beyond(padding: str, size: tuple[int, int]) -> None:
    image = IMAGE if size == (50, 70) else np.random.default_rng(5).integers(0, 256, (*size, 3), np.uint8)
    got = core.gather(image, 0, 0, (64, 96), MEAN, STD, padding=padding, threads=3)
    np.testing.assert_allclose(got, tile_reference.gather(image, 0, 0, (64, 96), MEAN, STD, padding=padding), atol=1e-6)


@pytest.mark.parametrize("padding", ["zero", "edge", "reflect"])
@pytest.mark.parametrize("size", [(50, 70), (3, 2), (1, 1), (1, 40), (64, 5)])
def test_gather_reads_a_margin_around_the_window(padding: str, size: tuple[int, int]) -> None:
    image, margin, part = IMAGE[: size[0], : size[1]], (9, 4, 6, 13), (20, 30)
    if size == (64, 5):
        image = np.random.default_rng(5).integers(0, 256, (*size, 3), np.uint8)
    tops, lefts = ([0] if length <= inner else [0, 1, length - inner] for length, inner in zip(size, part, strict=True))
    window = (part[0] + 15, part[1] + 17)
    around = ((100, 100), (100, 100), (0, 0))
    normalised = (image.astype(np.float64) - MEAN) / STD
    beyond = np.pad(normalised, around) if padding == "zero" else np.pad(normalised, around, mode=padding)  # type: ignore[call-overload]
    for top in tops:
        for left in lefts:
            got = core.gather(image, top, left, window, MEAN, STD, padding=padding, threads=3, margin=margin)
            rows, columns = (
                slice(100 + at, 100 + at + side) for at, side in zip((top - 9, left - 4), window, strict=True)
            )
            np.testing.assert_allclose(got, beyond[rows, columns].transpose(2, 0, 1), atol=1e-5)


def test_gather_equals_torch_normalisation() -> None:
    x = (torch.from_numpy(IMAGE).permute(2, 0, 1).float() - torch.tensor(MEAN).view(3, 1, 1)) / (
        torch.tensor(STD).view(3, 1, 1))  # fmt: skip
    np.testing.assert_allclose(core.gather(IMAGE, 0, 0, (50, 70), MEAN, STD), x.numpy(), atol=5e-7)


@pytest.mark.parametrize("channels", [1, 2, 4, 13, 64])
@pytest.mark.parametrize("padding", ["zero", "edge", "reflect"])
def test_gather_takes_any_number_of_channels(channels: int, padding: str) -> None:
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 256, (50, 70, channels), np.uint8)
    mean, std = rng.uniform(0, 255, channels), rng.uniform(0.1, 99, channels)
    order = rng.permutation(channels)
    for view in (image, image[::-1], image[:, :, ::-1], np.asfortranarray(image)):
        for top, left, window in ((3, 5, (10, 12)), (0, 0, (64, 96))):
            got = core.gather(view, top, left, window, mean, std, order=order, padding=padding, threads=2)
            expected = tile_reference.gather(view, top, left, window, mean, std, order=order, padding=padding)
            np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_gather_writes_into_a_batch() -> None:
    batch = np.full((2, 3, 50, 70), 9, np.float32)
    core.gather(IMAGE, 0, 0, (50, 70), MEAN, STD, out=batch[1])
    assert (batch[0] == 9).all()
    assert np.array_equal(batch[1], core.gather(IMAGE, 0, 0, (50, 70), MEAN, STD))


GOOD = np.zeros((3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": []}, "got 0 logits"),
        ({"logits": [GOOD.astype(np.float64)]}, "float64"),
        ({"logits": [GOOD[:, ::2]]}, "C-contiguous"),
        ({"logits": [GOOD[0]]}, "C-contiguous"),
        ({"logits": [np.zeros((256, 4, 4), np.float32)]}, "1 to 255 classes"),
        ({"logits": [np.zeros((0, 4, 4), np.float32)]}, "1 to 255 classes"),
        ({"tops": [0, 1]}, "one each"),
        ({"lefts": [-1]}, "places of 0 or more"),
        ({"lefts": [2**32]}, "none beyond"),
        ({"lefts": [2**31 - 1]}, "none beyond"),
        ({"tops": [0.0]}, "expected integers"),
        ({"window": (0, 16)}, "sizes of 1 or more"),
        ({"window": (16, 16, 16)}, "expected 4 of them"),
        ({"logits": [GOOD, np.zeros((3, 4, 5), np.float32)], "tops": [0, 0], "lefts": [0, 0]}, "the same shape"),
        ({"logits": [GOOD.tolist()]}, "of type list"),
        ({"logits": [GOOD.astype(">f4")]}, ">f4"),
        ({"logits": [np.zeros(193, np.uint8)[1:].view(np.float32).reshape(3, 4, 4)]}, "not aligned"),
        ({"rows": (0, 17)}, "rows 0..17"),
        ({"rows": (5, 5)}, "rows 5..5"),
        ({"rows": (-1, 5)}, "rows -1..5"),
        ({"image_size": (16, 17)}, "lies in no window"),
        ({"lefts": [1]}, "lies in no window"),
        ({"tops": [1]}, "lies in no window"),
        ({"weights": (np.ones(16, np.float32), np.ones(15, np.float32))}, "weights"),
        ({"weights": (np.ones(16, np.float32), np.zeros(16, np.float32))}, "> 0"),
        ({"weights": (np.ones(16, np.float32), np.full(16, np.nan, np.float32))}, "> 0"),
        ({"weights": (np.ones(16, np.float32), np.full(16, np.inf, np.float32))}, "> 0"),
        ({"labels": np.zeros((15, 16), np.uint8)}, r"labels \(15, 16\)"),
        ({"labels": np.zeros((16, 16), np.int64)}, "int64"),
        ({"labels": np.zeros((16, 32), np.uint8)[:, ::2]}, "labels"),
        ({"confidence": np.zeros((16, 16), np.float64)}, "confidence"),
        ({"threads": -1}, "threads"),
    ],
)
def test_stitch_refuses(changes: dict, message: str) -> None:
    arguments = {"logits": [GOOD], "tops": [0], "lefts": [0], "window": (16, 16), "image_size": (16, 16), **changes}
    with pytest.raises(DeployError, match=message):
        core.stitch(**arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (2, 3, 3), (1, 2, 1)])
def test_logits_that_are_not_finite_are_an_error(value: float, place: tuple[int, int, int]) -> None:
    logits = GOOD.copy()
    logits[place] = value
    with pytest.raises(DeployError, match="NaN or infinite"):
        core.stitch([logits], [0], [0], (16, 16), (16, 16))


def test_finite_logits_with_an_infinite_sum_are_an_error() -> None:
    for value in (3e38, -3e38):
        with pytest.raises(DeployError, match="NaN or infinite"):
            core.stitch([np.full((3, 4, 4), value, np.float32)] * 2, [0, 0], [0, 0], (16, 16), (16, 16))


@pytest.mark.parametrize("low", [4, 16, 5])
def test_labels_stay_in_range_whatever_the_logits_hold(low: int) -> None:
    rng = np.random.default_rng(6)
    logits = rng.choice(np.float32([np.nan, np.inf, -np.inf, 1, 3e38]), (7, low, low))
    labels, certainty = np.full((16, 16), 99, np.uint8), np.zeros((16, 16), np.float32)
    with pytest.raises(DeployError, match="NaN or infinite"):
        core.stitch([logits], [0], [0], (16, 16), (16, 16), labels=labels, confidence=certainty)
    assert labels.max() < 7


def test_numpy_integers_are_integers() -> None:
    zero, sixteen = np.zeros(1, np.int64), np.int32(16)
    labels, _ = core.stitch([GOOD], zero, zero, (sixteen, sixteen), (sixteen, sixteen), rows=(np.int64(3), sixteen))  # type: ignore[arg-type]
    assert labels.shape == (13, 16)
    assert core.gather(IMAGE, np.int64(3), zero[0], (sixteen, sixteen), MEAN, STD).shape == (3, 16, 16)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1024])
def test_blend_weights_are_what_they_are_called(size: int) -> None:
    assert core.blend_weights("uniform", size, size) is None
    gaussian, hann = core.blend_weights("gaussian", size, size + 1), core.blend_weights("hann", size, size + 1)
    assert gaussian is not None
    assert hann is not None
    for axis, length in enumerate((size, size + 1)):
        expected = windows.gaussian(length, 0.125 * length)
        np.testing.assert_allclose(gaussian[axis], np.maximum(expected, 1e-3), rtol=1e-6)
        centre = np.abs(np.arange(length) - (length - 1) / 2) / length  # 0 in the middle, just under 1/2 at the ends
        np.testing.assert_allclose(hann[axis], np.cos(np.pi * centre) ** 2, rtol=1e-5)
        assert min(gaussian[axis].min(), hann[axis].min()) > 0
    with pytest.raises(DeployError, match="cosine"):
        core.blend_weights("cosine", size, size)


def test_any_number_of_windows_may_overlap() -> None:
    labels, certainty = core.stitch([GOOD] * 300, [0] * 300, [0] * 300, (16, 16), (16, 16), confidence=True)
    assert (labels == 0).all()
    np.testing.assert_allclose(certainty, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": IMAGE[:, :, 0]}, "expected"),
        ({"image": IMAGE.astype(np.float32)}, "float32"),
        ({"top": -1}, "does not fit"),
        ({"top": 45}, "does not fit"),
        ({"left": 65}, "does not fit"),
        ({"window": (0, 5)}, "does not fit"),
        ({"padding": "wrap"}, "padding"),
        ({"order": (0, 0, 1)}, "order"),
        ({"std": (1, 0, 1)}, "std above 0"),
        ({"std": (1, 1)}, "a number for each channel"),
        ({"std": (1, 1), "mean": (0, 0)}, r"expected \(H, W, 2\)"),
        ({"mean": (0, np.nan, 0)}, "a number for each channel"),
        ({"top": 2**32}, "none beyond"),
        ({"top": 0.5}, "expected integers"),
        ({"out": np.zeros((3, 10, 11), np.float32)}, "out"),
        ({"out": np.zeros((3, 10, 10), np.float64)}, "out"),
    ],
)
def test_gather_refuses(changes: dict, message: str) -> None:
    arguments = {"image": IMAGE, "top": 0, "left": 0, "window": (10, 10), "mean": MEAN, "std": STD, **changes}
    with pytest.raises(DeployError, match=message):
        core.gather(**arguments)


def test_a_missing_library_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "EXTENSION_SUFFIXES", [".not-built"])
    core.library.cache_clear()
    with pytest.raises(DeployError, match=r"pip install -e \."):
        core.gather(IMAGE, 0, 0, (10, 10), MEAN, STD)
    monkeypatch.undo()
    core.library.cache_clear()
    assert core.build_info()
