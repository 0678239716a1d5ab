"""Several views of an image, against mmsegmentation's semantics written out in PyTorch."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.errors import DeployError, NotFiniteError
from engines.guard.ledger import nameless_file
from engines.images.resize import resample
from engines.segmenter import Segmenter, open_segmenter
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from engines.tiling.sizes import Resize
from engines.views import store, work
from engines.views.schedule import Schedule
from engines.views.views import SCALES, ImageViews
from tests.engines.views.reference import merged, require_equal, slide, view_size
from tests.models import tiny

THREE = ModelSpec("test", "", ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


class _Model:
    """A network of ours as an engine."""

    def __init__(self, model) -> None:  # type: ignore[no-untyped-def]
        self.model, self.runs = model, 0

    def run(self, windows: np.ndarray) -> np.ndarray:
        self.runs += 1
        with torch.no_grad():
            return np.concatenate([self.model(torch.from_numpy(window[None])).numpy() for window in windows])


def _image(height: int, width: int) -> np.ndarray:
    """Noise of several sizes: neither flat nor without structure."""
    rng = np.random.default_rng(height * 1000 + width)
    parts = [rng.integers(0, 256, (max(1, height // n), max(1, width // n), 3), np.uint8) for n in (1, 9, 23)]
    return np.mean([resample(part, (height, width), "pillow-bilinear") for part in parts], axis=0).astype(np.uint8)


def _views_of(image: np.ndarray, scales, flip: bool, window, spec: ModelSpec):  # type: ignore[no-untyped-def]
    size = image.shape[:2]
    resized = [resample(image, view_size(size, scale, window), spec.resample) for scale in scales]
    return [(each, mirror) for each in resized for mirror in ((False, True) if flip else (False,))]


CASES = [
    # image, tiling, views
    ((150, 333), Tiling(64, 96, 48, 64), ImageViews(scales=SCALES, flip=True)),
    ((150, 333), Tiling(64, 96, 48, 64), ImageViews(scales=SCALES, flip=True, merge="max")),
    ((150, 333), Tiling(64, 96, 48, 64), ImageViews(scales=(0.75, 1.3, 1), flip=False)),
    ((200, 90), Tiling(64, 64, 40, 64, blend="gaussian"), ImageViews(scales=(1.0, 2.0), flip=True)),
    ((40, 50), Tiling(64, 96, 48, 64), ImageViews(scales=SCALES, flip=True)),  # every view is lifted
    ((1, 1), Tiling(64, 64, 48, 48), ImageViews(scales=SCALES, flip=True)),
    ((70, 3), Tiling(64, 64, 48, 48), ImageViews(scales=(1.0,), flip=True)),
]


@pytest.mark.parametrize(("size", "tiling", "views"), [case for case in CASES if case[1].blend == "uniform"])
def test_labels_equal_mmsegmentation_with_tta(
    size: tuple[int, int], tiling: Tiling, views: ImageViews, tiny_bundle: Path
) -> None:
    with open_segmenter(tiny_bundle) as (_, manifest):
        spec = manifest.spec
    image, model = _image(*size), tiny()
    segmenter = Segmenter.on_host(_Model(model), spec, tiling).on_views(views)
    mask = segmenter.segment(image, confidence=True)
    seen = _views_of(image, views.scales, views.flip, (tiling.window_h, tiling.window_w), spec)
    expected = merged(model, seen, size, tiling, spec, views.merge)
    require_equal(mask.labels, expected)
    assert mask.confidence is not None
    np.testing.assert_allclose(mask.confidence, expected.max(0).values.numpy(), atol=2e-5)


@pytest.mark.parametrize(("size", "tiling", "views"), CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_bands_and_files_give_the_same_bits(
    size: tuple[int, int], tiling: Tiling, views: ImageViews, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, engine = _image(*size), _Pooled()
    segmenter = Segmenter.on_host(engine, THREE, tiling, batch=batch).on_views(views)
    whole = segmenter.segment(image, confidence=True)
    bands = list(segmenter.bands(image, confidence=True))
    monkeypatch.setattr(work, "IN_MEMORY", 0)
    monkeypatch.setattr(work, "LOADED", 0)
    monkeypatch.setattr(work.ViewWork, "_keep", _always_in_a_file)
    filed = segmenter.segment(image, confidence=True)
    assert [band.row0 for band in bands] == [0, *(band.row1 for band in bands[:-1])]
    for other in (np.concatenate([band.labels for band in bands]), filed.labels):
        assert np.array_equal(other, whole.labels)
    for certainty in (np.concatenate([band.confidence for band in bands]), filed.confidence):
        assert np.array_equal(certainty, whole.confidence)


def _always_in_a_file(self: work.ViewWork, logits: np.ndarray) -> object:
    if self._store is None:
        self._logits, self._store = logits.shape, work.InFile()  # type: ignore[assignment]
    return self._store


class _Pooled:
    """Logits at an eighth, which differ from pixel to pixel."""

    def run(self, windows: np.ndarray) -> np.ndarray:
        count, _, height, width = windows.shape
        return windows.reshape(count, 3, height // 8, 8, width // 8, 8).mean((3, 5)).astype(np.float32)


def test_one_class_is_merged_as_a_probability() -> None:
    """One class: the sigmoid's mean against the threshold, as mmsegmentation has it for one output channel."""
    tiling = Tiling(64, 64, 48, 48)
    spec = ModelSpec("test", "", ("road",), ((1, 2, 3),), threshold=0.45)
    image, views = _image(120, 90), ImageViews(scales=(1.0, 1.5), flip=True)
    one = torch.nn.Conv2d(3, 1, 8, 8)
    with torch.no_grad():
        one.weight.copy_(0.3 * torch.randn(one.weight.shape, generator=torch.Generator().manual_seed(0)))
        one.bias.zero_()
    mask = Segmenter.on_host(_Model(one), spec, tiling).on_views(views).segment(image, confidence=True)
    seen = _views_of(image, views.scales, True, (64, 64), spec)
    probability = merged(one, seen, (120, 90), tiling, spec)[0].numpy()
    clear = abs(probability - 0.45) > 1e-4
    assert 0.05 < (probability > 0.45).mean() < 0.95
    assert np.array_equal(mask.labels[clear], (probability > 0.45)[clear])
    expected = np.where(mask.labels, probability, 1 - probability)
    np.testing.assert_allclose(mask.confidence, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "size"),
    [("200x77", (77, 200)), ("short=70", (70, 98)), ("long=100", (71, 100)), ("96x64", (64, 96)), ("33x20", (20, 33))],
)
def test_a_resized_image_equals_mmsegmentation_in_whole_or_slide_mode(
    text: str, size: tuple[int, int], tiny_bundle: Path
) -> None:
    """Two resizes: the windows' logits to the resized image's pixels, and those to the image's own."""
    image = _image(150, 211)
    with open_segmenter(tiny_bundle, views=lambda manifest: ImageViews(Resize.parse(text))) as (segmenter, manifest):
        mask = segmenter.segment(image, confidence=True)
        bands = list(segmenter.bands(image))
        spec, tiling = manifest.spec, manifest.tiling
    logits = slide(tiny(), resample(image, size, spec.resample), tiling, spec)
    expected = torch.nn.functional.interpolate(logits, (150, 211), mode="bilinear")[0].softmax(0)
    require_equal(mask.labels, expected)
    np.testing.assert_allclose(mask.confidence, expected.max(0).values.numpy(), atol=1e-4)
    assert np.array_equal(np.concatenate([band.labels for band in bands]), mask.labels)


def test_scales_that_lead_to_the_same_size_run_once_and_count_twice() -> None:
    tiling, image = Tiling(64, 64, 48, 48), _image(64, 128)
    engine = _Model(torch.nn.Conv2d(3, 3, 8, 8))
    segmenter = Segmenter.on_host(engine, THREE, tiling).on_views(ImageViews(scales=(0.5, 0.75, 2.0)))
    running = segmenter.start(image, confidence=True)
    mask = running.mask()
    assert [(each.view.scales, each.windows) for each in running.views] == [((0.5, 0.75), 3), ((2.0,), 15)]
    assert engine.runs == 18 == running.timings.windows
    seen = _views_of(image, (0.5, 0.75, 2.0), False, (64, 64), THREE)
    expected = merged(engine.model, seen, (64, 128), tiling, THREE)
    np.testing.assert_allclose(mask.confidence, expected.max(0).values.detach().numpy(), atol=1e-5)


def test_views_need_no_more_memory_than_a_plain_run_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits beyond that lie in a file, and of those only the rows of a band are read."""
    read: list[int] = []
    original = work.InFile.rows

    def counting(self, key, first, end):  # type: ignore[no-untyped-def]
        rows, start = original(self, key, first, end)
        read.append(rows.nbytes)
        return rows, start

    monkeypatch.setattr(work.InFile, "rows", counting)
    monkeypatch.setattr(work, "IN_MEMORY", 0)
    monkeypatch.setattr(work, "LOADED", 1 << 16)
    tiling, views = Tiling(128, 128, 96, 96), ImageViews(scales=SCALES, flip=True)
    Segmenter.on_host(_Pooled(), THREE, tiling).on_views(views).segment(_image(256, 512))
    assert read
    assert max(read) <= 3 * 16 * 16 * 4 // 2, "a window is read in parts"


def test_the_file_of_one_image_serves_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """New pages cost more than what is written into them: one file, and nothing of the last image in the next mask."""
    made: list[int] = []
    monkeypatch.setattr(store, "nameless_file", lambda: made.append(nameless_file()) or made[-1])
    monkeypatch.setattr(work, "IN_MEMORY", 0)
    tiling, views = Tiling(128, 128, 96, 96), ImageViews(scales=SCALES, flip=True)

    def fresh() -> Segmenter:
        return Segmenter.on_host(_Pooled(), THREE, tiling).on_views(views)

    images = [_image(256, 512), _image(300, 400)[::-1].copy(), _image(256, 512)[:, ::-1].copy()]
    expected = [fresh().segment(image).labels for image in images]
    assert len(made) == len(images)
    segmenter, sizes = fresh(), set()
    for image, labels in zip(images, expected, strict=True):
        assert np.array_equal(segmenter.segment(image).labels, labels)
        sizes.add(os.fstat(made[-1]).st_size)
    assert len(made) == len(images) + 1
    assert len(sizes) <= 2, "places of the first image are used again"


@pytest.mark.parametrize(("size", "tiling", "views"), CASES)
def test_stages_finish_every_row_once_and_run_every_window_once(
    size: tuple[int, int], tiling: Tiling, views: ImageViews
) -> None:
    schedule = Schedule.of(size[0], views.of(*size, (tiling.window_h, tiling.window_w)), tiling)
    assert [turn.rows[0] for turn in schedule.turns] == [0, *(turn.rows[1] for turn in schedule.turns[:-1])]
    assert schedule.turns[-1].rows[1] == size[0]
    runs = [run for turn in schedule.turns for run in turn.runs]
    assert len(runs) == len(set(runs)) == sum(len(rows) for rows in schedule.windows)
    if max(size) > 100:
        assert schedule.most_held() < schedule.count


def test_nan_names_the_window_of_the_view() -> None:
    class Overflows:
        def run(self, windows: np.ndarray) -> np.ndarray:
            return np.where(windows > 2.3, np.float32(np.inf), windows)[:, :, ::4, ::4]

    image = np.full((70, 85, 3), 100, np.uint8)
    image[40:60, 40:60] = 255
    segmenter = Segmenter.on_host(Overflows(), THREE, Tiling(32, 32, 24, 24)).on_views(
        ImageViews(scales=(2.0,), flip=True)
    )
    with pytest.raises(NotFiniteError, match=r"row 4, column 4 \(pixels x 72 to 104, y 72 to 104"):
        segmenter.segment(image)
    with pytest.raises(NotFiniteError, match=r"row 4, column 4 \(pixels x 72 to 104, y 72 to 104"):
        list(segmenter.bands(image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageViews(scales=(0.0,)), "--scales: got 0, expected factors"),
        (lambda: ImageViews(scales=(1.0, 40.0)), "--scales: got 40, expected factors"),
        (lambda: ImageViews(scales=(float("nan"),)), "--scales: got nan"),
        (lambda: ImageViews(scales=(1.0,) * 33), "--scales: got 33"),
        (lambda: ImageViews(scales=(1.0,), merge="median"), "expected one of mean, max"),
        (lambda: ImageViews(scales=(1.0,)).of(1, 100000, (1024, 1024)), "becomes 102400000x1024"),
        (lambda: Resize.parse("0x5"), "expected sides of 1"),
        (lambda: Resize.parse("short=0"), "expected sides of 1"),
        (lambda: Resize.parse("half"), "expected none, WxH"),
        (lambda: Resize.parse("long=5,long=9"), "expected short=N,long=M"),
        (lambda: Resize.parse("short=5,long=4"), "expected short=N,long=M"),
        (lambda: Resize.parse("99999999x1"), "expected sides of 1"),
    ],
)
def test_bad_views_are_one_line(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DeployError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_threshold_is_kept() -> None:
    spec = replace(THREE, classes=("a", "b"), palette=((0, 0, 0), (1, 1, 1)), threshold=0.9)
    one = Segmenter.on_host(_Model(torch.nn.Conv2d(3, 1, 8, 8)), spec, Tiling(64, 64, 48, 48))
    views = one.on_views(ImageViews(Resize("exact", 100, 100)))
    mask = views.segment(_image(60, 90), confidence=True)
    assert mask.confidence is not None
    assert (mask.confidence[mask.labels == 1] > 0.9).all()
    assert (mask.confidence[mask.labels == 0] >= 0.1 - 1e-6).all()


def test_a_full_disk_is_one_line_and_the_next_image_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "IN_MEMORY", 0)
    segmenter = Segmenter.on_host(_Pooled(), THREE, Tiling(64, 64, 48, 48)).on_views(ImageViews(scales=SCALES))
    image = _image(200, 300)
    expected = segmenter.segment(image).labels
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DeployError, match="temporary file for their logits: File too large; free some space"):
            segmenter.segment(image)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert np.array_equal(segmenter.segment(image).labels, expected)
