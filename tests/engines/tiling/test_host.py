"""Batches on the host: made of windows of every row and every image under way, and nothing else changes."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest

from engines.errors import DeployError, NotFiniteError
from engines.segmenter import Running, Segmenter
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling

SPEC = ModelSpec("test", "", ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
TILING = Tiling(32, 32, 24, 24)
RNG = np.random.default_rng(0)


class _Engine:
    """Logits are the pixels, every fourth; bright ones overflow.  runs: how often it was run.  fails: in which run."""

    def __init__(self, batch: int, fails: int = -1) -> None:
        self.batch, self.runs, self.fails = batch, 0, fails

    def run(self, windows: np.ndarray) -> np.ndarray:
        assert windows.shape == (self.batch, 3, 32, 32)
        self.runs += 1
        if self.runs == self.fails:
            raise DeployError("the engine failed")
        return np.where(windows > 2.3, np.float32(np.inf), windows)[:, :, ::4, ::4]


def _segmenter(batch: int, fails: int = -1) -> tuple[Segmenter, _Engine]:
    engine = _Engine(batch, fails)
    return Segmenter.on_host(engine, SPEC, TILING, batch=batch), engine


def _images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    return [RNG.integers(0, 200, (*size, 3), np.uint8) for size in sizes]


def _windows(image: np.ndarray) -> int:
    return sum(len(row.lefts) for row in TILING.window_rows(*image.shape[:2]))


SMALL = [(30, 20), (32, 32), (5, 32)]  # one window each
MIXED = [(32, 32), (70, 85), (30, 200), (32, 32), (200, 31), (100, 100), (32, 32)]


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("sizes", [20 * SMALL, 3 * MIXED], ids=["one window each", "mixed"])
def test_a_batch_is_filled_from_all_images_under_way(batch: int, sizes: list[tuple[int, int]]) -> None:
    images = _images(*sizes)
    right = [_segmenter(1)[0].segment(image, confidence=True) for image in images]
    segmenter, engine = _segmenter(batch)
    masks = list(segmenter.stream(images, confidence=True))
    for mask, expected in zip(masks, right, strict=True):
        assert np.array_equal(mask.labels, expected.labels)
        assert np.array_equal(mask.confidence, expected.confidence)
    assert engine.runs == ceil(sum(map(_windows, images)) / batch)


@pytest.mark.parametrize("batch", [2, 3, 8, 100])
def test_a_batch_goes_on_in_the_next_row_in_bands_too(batch: int) -> None:
    (image,) = _images((200, 150))
    expected = _segmenter(1)[0].segment(image)
    segmenter, engine = _segmenter(batch)
    assert np.array_equal(segmenter.segment(image).labels, expected.labels)
    assert engine.runs == ceil(_windows(image) / batch)
    bands = list(segmenter.bands(image))
    assert [band.row0 for band in bands] == [0, *(band.row1 for band in bands[:-1])]
    assert np.array_equal(np.concatenate([band.labels for band in bands]), expected.labels)
    assert engine.runs == 2 * ceil(_windows(image) / batch)


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_a_window_that_overflows_is_named_and_other_images_of_its_batch_finish(batch: int) -> None:
    images = _images(*SMALL, (70, 85), *SMALL)
    images[3][58, 52] = 255
    segmenter, _ = _segmenter(batch)
    under_way: list[Running] = []
    labels: dict[int, np.ndarray] = {}
    for index, image in enumerate(images):
        under_way.append(segmenter.start(image))
        while len(under_way) == batch or (index + 1 == len(images) and under_way):
            number = index + 1 - len(under_way)
            running = under_way.pop(0)
            if number == 3:
                with pytest.raises(NotFiniteError, match="row 3, column 2"):
                    running.mask()
                continue
            labels[number] = running.mask().labels
            assert running.timings.windows == _windows(images[number])
    assert sorted(labels) == [0, 1, 2, 4, 5, 6]
    for number, got in labels.items():
        assert np.array_equal(got, _segmenter(1)[0].segment(images[number]).labels)


def test_bands_above_a_window_that_overflows_are_given() -> None:
    """Though windows of later rows have run in the batch of earlier ones."""
    (image,) = _images((200, 40))
    image[180, 20] = 255
    segmenter, _ = _segmenter(100)
    rows = []
    with pytest.raises(NotFiniteError, match="row 8, column 1"):
        rows.extend(band.row1 for band in segmenter.bands(image))
    assert rows == [row.rows[1] for row in TILING.window_rows(200, 40)][:7]


def test_an_engine_that_fails_fails_the_images_of_its_batch_alone() -> None:
    images = _images(*5 * SMALL[:2])
    segmenter, _ = _segmenter(4, fails=2)
    runs = [segmenter.start(image) for image in images[:4]]
    assert all(running.done for running in runs)
    assert [running.mask().labels.shape for running in runs] == [image.shape[:2] for image in images[:4]]
    for running in [segmenter.start(image) for image in images[4:8]]:
        with pytest.raises(DeployError, match="the engine failed"):
            running.mask()
    late = [segmenter.start(image) for image in images[8:]]
    assert not any(running.done for running in late)
    assert [running.mask().labels.shape for running in late] == [image.shape[:2] for image in images[8:]]


def test_times_are_an_images_own() -> None:
    images = _images(*MIXED)
    segmenter, _ = _segmenter(8)
    running = [segmenter.start(image) for image in images]
    for each in running:
        each.mask()
    assert [each.timings.windows for each in running] == list(map(_windows, images))
    for part in ("gather", "engine", "stitch"):
        assert all(getattr(each.timings, part) > 0 for each in running)
        total = sum(getattr(each.timings, part) for each in running)
        assert getattr(segmenter.device.timings, part) == pytest.approx(total)


def test_a_result_asked_for_after_an_interruption_is_an_error_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, engine = _segmenter(4)
    running = segmenter.start(_images((32, 32))[0])

    def interrupted(windows: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        running.mask()
    with pytest.raises(DeployError, match="interrupted"):
        running.mask()
