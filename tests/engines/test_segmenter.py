"""The flow from image to mask, against mmsegmentation's slide mode written out in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engines.errors import DeployError, NotFiniteError
from engines.segmenter import Segmenter, open_segmenter
from engines.spec import ModelSpec
from engines.tiling.host import HostStrips
from engines.tiling.placement import Tiling
from tests.models import tiny


@contextmanager
def _opened(folder: Path) -> Iterator[Segmenter]:
    with open_segmenter(folder) as (segmenter, _):
        yield segmenter


def _slide(image: np.ndarray, tiling: Tiling, spec: ModelSpec) -> torch.Tensor:
    """(K, H, W): mean of raw logits upsampled to the crop.  Smaller images are padded in normalised space."""
    model = tiny()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    x = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() - mean) / std
    height, width = image.shape[:2]
    x = F.pad(x, (0, max(0, tiling.window_w - width), 0, max(0, tiling.window_h - height)))
    full_h, full_w = x.shape[2:]
    total, count = torch.zeros(5, full_h, full_w), torch.zeros(full_h, full_w)
    for row in range(max(full_h - tiling.window_h + tiling.stride_h - 1, 0) // tiling.stride_h + 1):
        for column in range(max(full_w - tiling.window_w + tiling.stride_w - 1, 0) // tiling.stride_w + 1):
            bottom = min(row * tiling.stride_h + tiling.window_h, full_h)
            right = min(column * tiling.stride_w + tiling.window_w, full_w)
            top, left = bottom - tiling.window_h, right - tiling.window_w
            with torch.no_grad():
                logits = model(x[:, :, top:bottom, left:right])
            logits = F.interpolate(logits, (tiling.window_h, tiling.window_w), mode="bilinear", align_corners=False)
            total[:, top:bottom, left:right] += logits[0]
            count[top:bottom, left:right] += 1
    return (total / count)[:, :height, :width]


@pytest.mark.parametrize("size", [(64, 96), (150, 333), (40, 50), (64, 97), (1, 1), (200, 30), (111, 96)])
def test_labels_and_confidence_equal_slide_mode_in_torch(tiny_bundle: Path, size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    with _opened(tiny_bundle) as segmenter:
        mask = segmenter.segment(image, confidence=True)
        reference = _slide(image, segmenter.tiling, segmenter.spec)
    top2 = reference.topk(2, dim=0).values
    clear = (top2[0] - top2[1] >= 1e-4).numpy()
    assert clear.mean() > 0.99
    assert np.array_equal(mask.labels[clear], reference.argmax(0).numpy()[clear])
    assert mask.confidence is not None
    np.testing.assert_allclose(mask.confidence, reference.softmax(0).max(0).values.numpy(), atol=1e-4)


def test_bands_are_the_mask_in_pieces(tiny_bundle: Path) -> None:
    image = np.random.default_rng(2).integers(0, 256, (300, 200, 3), np.uint8)
    with _opened(tiny_bundle) as segmenter:
        whole = segmenter.segment(image, confidence=True)
        bands = list(segmenter.bands(image, confidence=True))
    assert [band.row0 for band in bands] == [0, *(band.row1 for band in bands[:-1])]
    assert bands[-1].row1 == 300
    assert np.array_equal(np.concatenate([band.labels for band in bands]), whole.labels)
    assert np.array_equal(np.concatenate([band.confidence for band in bands]), whole.confidence)


class _Counting:
    """An engine that answers with constant logits and counts how many answers are alive."""

    def run(self, windows: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.arange(3, dtype=np.float32)[None, :, None, None], (1, 3, 8, 8)).copy()


def test_bands_hold_only_the_window_rows_that_touch_them(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec("test", "", ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    segmenter = Segmenter.on_host(_Counting(), spec, Tiling(32, 32, 24, 24))
    held: list[int] = []
    original = HostStrips._stitch

    def counting(self, step):  # type: ignore[no-untyped-def]
        held.append(len(self._held))
        return original(self, step)

    monkeypatch.setattr(HostStrips, "_stitch", counting)
    total = sum(band.labels.shape[0] for band in segmenter.bands(np.zeros((1000, 40, 3), np.uint8)))
    assert total == 1000
    assert max(held) <= 3  # two overlapping rows, three where the last one snaps back to the edge


def test_a_bgr_network_gets_bgr(tiny_bundle: Path) -> None:
    from dataclasses import replace

    image = np.random.default_rng(3).integers(0, 256, (64, 96, 3), np.uint8)
    with _opened(tiny_bundle) as segmenter:
        expected = segmenter.segment(image).labels
        spec = segmenter.spec
        swapped = replace(spec, channel_order="BGR", mean=spec.mean[::-1], std=spec.std[::-1])
        bgr = Segmenter.on_host(_Flip(segmenter.session), swapped, segmenter.tiling)
        assert np.array_equal(bgr.segment(image).labels, expected)


class _Flip:
    """Puts the channels back, as a network trained on BGR would see them."""

    def __init__(self, session) -> None:  # type: ignore[no-untyped-def]
        self.session = session

    def run(self, windows: np.ndarray) -> np.ndarray:
        return self.session.run(np.ascontiguousarray(windows[:, ::-1]))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_anything_but_an_rgb_image_is_refused(tiny_bundle: Path, image: np.ndarray) -> None:
    with _opened(tiny_bundle) as segmenter, pytest.raises(DeployError, match="expected"):
        segmenter.segment(image)


class _NaN:
    def run(self, windows: np.ndarray) -> np.ndarray:
        return np.full((1, 3, 8, 8), np.nan, np.float32)


def test_an_engine_that_answers_nan_is_an_error() -> None:
    spec = ModelSpec("test", "", ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    with pytest.raises(DeployError, match="NaN"):
        Segmenter.on_host(_NaN(), spec, Tiling(32, 32, 24, 24)).segment(np.zeros((32, 32, 3), np.uint8))


class _Overflows:
    """fp16 in the middle of a network: what is brighter than the pixels of the calibration set becomes infinite."""

    def __init__(self, batch: int) -> None:
        self._batch = batch

    def run(self, windows: np.ndarray) -> np.ndarray:
        assert windows.shape == (self._batch, 3, 32, 32)
        return np.where(windows > 2.3, np.float32(np.inf), windows)[:, :, ::4, ::4]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("precision", "cause"),
    [("fp32", "check the weights, mean and std"), ("fp16", "overflow of fp16 on this picture, .* --calib, or with")],
)
def test_the_window_that_overflows_is_named_with_its_likely_cause(batch: int, precision: str, cause: str) -> None:
    spec = ModelSpec("test", "", ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    segmenter = Segmenter.on_host(_Overflows(batch), spec, Tiling(32, 32, 24, 24), batch=batch, precision=precision)
    image = np.full((70, 85, 3), 100, np.uint8)
    image[58, 52] = 255  # in the third row of windows alone, at its second and third column
    where = rf"row 3, column 2 \(pixels x 24 to 56, y 38 to 70; 1\.04% of it\): .*{cause}"
    with pytest.raises(NotFiniteError, match=where):
        segmenter.segment(image)
    with pytest.raises(NotFiniteError, match=where):
        list(segmenter.bands(image))
    image[58] = 100
    assert segmenter.segment(image).labels.shape == (70, 85), "the next picture is as if nothing had been"


class _Batched:
    """Runs an engine of one window over a batch."""

    def __init__(self, session) -> None:  # type: ignore[no-untyped-def]
        self._session = session
        self.sizes: list[int] = []

    def run(self, windows: np.ndarray) -> np.ndarray:
        self.sizes.append(windows.shape[0])
        return np.concatenate([self._session.run(np.ascontiguousarray(w[None])).copy() for w in windows])


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_batches_of_windows_give_the_same_mask(tiny_bundle: Path, batch: int) -> None:
    image = np.random.default_rng(5).integers(0, 256, (150, 333, 3), np.uint8)
    with _opened(tiny_bundle) as segmenter:
        expected = segmenter.segment(image, confidence=True)
        batched = _Batched(segmenter.session)
        mask = Segmenter.on_host(batched, segmenter.spec, segmenter.tiling, batch=batch).segment(image, confidence=True)
    assert set(batched.sizes) == {batch}
    assert np.array_equal(mask.labels, expected.labels)
    assert np.array_equal(mask.confidence, expected.confidence)


def test_images_one_after_another_come_back_in_order(tiny_bundle: Path) -> None:
    rng = np.random.default_rng(6)
    images = [rng.integers(0, 256, (size, 2 * size, 3), np.uint8) for size in (40, 90, 40, 120, 40)]
    with _opened(tiny_bundle) as segmenter:
        expected = [segmenter.segment(image).labels for image in images]
        masks = [mask.labels for mask in segmenter.stream(iter(images))]
    assert len(masks) == len(expected)
    assert all(np.array_equal(mask, right) for mask, right in zip(masks, expected, strict=True))
