"""Scores against scikit-learn and against mmsegmentation's definition written out; bands against SciPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score

from engines.errors import DeployError
from engines.tiling.placement import Tiling
from pipeline.evaluation.metrics import Confusion, LabelAgreement, boundary_band, label_agreement, seam_band

NAMES = tuple("abcdefg")


def _blobs(seed: int, size: tuple[int, int], classes: int) -> np.ndarray:
    """Regions of a few pixels, as labels are, rather than noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (size[0] // 5 + 1, size[1] // 5 + 1), np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((5, 5), np.uint8))[: size[0], : size[1]])


def _pairs(seed: int, absent: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images of several sizes: truth with ignored pixels, and a prediction that is mostly right.

    absent: class 5 is never true but sometimes predicted, class 6 neither.
    """
    rng = np.random.default_rng(seed)
    out = []
    for index, size in enumerate([(40, 60), (33, 17), (1, 1), (64, 64)]):
        truth = _blobs(seed + index, size, 5 if absent else 7)
        wrong = _blobs(seed + index + 50, size, 6 if absent else 7)
        predicted = np.where(rng.random(size) < 0.7, truth, wrong).astype(np.uint8)
        truth[rng.random(size) < 0.1] = 255
        out.append((truth, predicted))
    return out


def _confusion(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Confusion:
    confusion = Confusion(len(NAMES))
    for truth, predicted in pairs:
        confusion.update(truth, predicted)
    return confusion


def _flat(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    truth = np.concatenate([t.ravel() for t, _ in pairs])
    predicted = np.concatenate([p.ravel() for _, p in pairs])
    return truth[truth != 255], predicted[truth != 255]


def _by_definition(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, np.ndarray, float, np.ndarray]:
    """mmsegmentation's IoUMetric: histograms of each image, added up, then divided; (aAcc, Acc, mIoU, IoU)."""
    areas = np.zeros((3, len(NAMES)))
    for truth, predicted in pairs:
        valid = truth != 255
        truth, predicted = truth[valid], predicted[valid]
        for row, values in enumerate((predicted[predicted == truth], predicted, truth)):
            areas[row] += np.histogram(values, bins=len(NAMES), range=(0, len(NAMES) - 1))[0]
    both, predicted_area, true_area = areas
    with np.errstate(invalid="ignore"):
        iou = both / (predicted_area + true_area - both)
        return both.sum() / true_area.sum(), both / true_area, np.nanmean(iou), iou


def test_scores_equal_scikit_learn() -> None:
    pairs = _pairs(0)
    truth, predicted = _flat(pairs)
    confusion = _confusion(pairs)
    scores = confusion.scores(NAMES)
    assert np.array_equal(confusion.matrix, confusion_matrix(truth, predicted, labels=range(7)))
    ious = jaccard_score(truth, predicted, labels=range(7), average=None)
    np.testing.assert_allclose([each.iou for each in scores.classes], ious, rtol=1e-12)
    assert scores.miou == pytest.approx(jaccard_score(truth, predicted, average="macro"), rel=1e-12)
    assert scores.aacc == pytest.approx(accuracy_score(truth, predicted), rel=1e-12)
    assert scores.macc == pytest.approx(balanced_accuracy_score(truth, predicted), rel=1e-12)


@pytest.mark.parametrize("absent", [False, True])
def test_scores_equal_mmsegmentations_definition(absent: bool) -> None:
    pairs = _pairs(3, absent)
    scores = _confusion(pairs).scores(NAMES)
    aacc, accuracy, miou, iou = _by_definition(pairs)
    values = [np.nan if each.iou is None else each.iou for each in scores.classes]
    np.testing.assert_allclose(values, iou, rtol=1e-12)
    np.testing.assert_allclose(
        [np.nan if each.accuracy is None else each.accuracy for each in scores.classes], accuracy, rtol=1e-12
    )
    assert (scores.miou, scores.aacc) == (pytest.approx(miou), pytest.approx(aacc))
    assert scores.macc == pytest.approx(np.nanmean(accuracy))


def test_the_whole_set_is_divided_once_and_not_image_by_image() -> None:
    pairs = _pairs(0)
    mean_of_images = np.mean([_by_definition([pair])[2] for pair in pairs])
    assert _confusion(pairs).scores(NAMES).miou != pytest.approx(mean_of_images, abs=1e-3)


def test_a_class_that_is_only_predicted_counts_and_one_that_never_occurs_does_not() -> None:
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    scores = _confusion([(truth, np.array([[0, 0, 1, 2]], np.uint8))]).scores(NAMES)
    assert [each.iou for each in scores.classes] == [1, 0.5, 0, None, None, None, None]
    assert [each.accuracy for each in scores.classes] == [1, 0.5, None, None, None, None, None]
    assert (scores.miou, scores.macc, scores.aacc) == (0.5, 0.75, 0.75)


def test_what_is_ignored_is_not_held_against_the_prediction() -> None:
    truth = np.array([[0, 255, 255, 1]], np.uint8)
    scores = _confusion([(truth, np.array([[0, 2, 1, 1]], np.uint8))]).scores(NAMES)
    assert scores.miou == scores.aacc == 1


def test_none_of_the_classes_is_wrong_but_no_class_is_blamed() -> None:
    confusion = _confusion([(np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 255, 1, 255]], np.uint8))])
    scores = confusion.scores(NAMES)
    assert confusion.missed.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert (scores.classes[0].iou, scores.classes[1].iou, scores.aacc) == (0.5, 1, pytest.approx(2 / 3))


def test_all_255_classes_have_room() -> None:
    labels = np.arange(255, dtype=np.uint8)[None]
    confusion = Confusion(255)
    confusion.update(labels, labels)
    assert np.array_equal(confusion.matrix, np.eye(255))


def test_a_label_that_is_no_class_is_refused_and_not_counted() -> None:
    confusion = Confusion(7)
    with pytest.raises(DeployError, match=r"\[7, 254\], expected 0..6 or 255"):
        confusion.update(np.array([[7, 254, 255, 0]], np.uint8), np.zeros((1, 4), np.uint8))
    assert not confusion.matrix.any()


@pytest.mark.parametrize("predicted", [np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.int64)])
def test_other_shapes_and_types_are_refused(predicted: np.ndarray) -> None:
    with pytest.raises(DeployError, match="expected uint8 of one shape"):
        Confusion(7).update(np.zeros((3, 2), np.uint8), predicted)


def test_nothing_to_score_is_an_error_and_not_nan() -> None:
    confusion = _confusion([(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))])
    with pytest.raises(DeployError, match="no labelled pixel"):
        confusion.scores(NAMES)


def test_scores_survive_json_and_print() -> None:
    scores = _confusion(_pairs(3, absent=True)).scores(NAMES)
    body = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert (body["miou"], body["aacc"], body["macc"]) == (scores.miou, scores.aacc, scores.macc)
    assert body["classes"] == [vars(each) for each in scores.classes]
    table = scores.table()
    assert f"{100 * scores.miou:.2f}" in table
    assert "g            -        -     0.00" in table


@pytest.mark.parametrize("width", [0, 1, 2, 3, 4, 5, 7, 8, 100])
@pytest.mark.parametrize("size", [(40, 61), (1, 30), (30, 1), (1, 1)])
def test_boundary_band_equals_scipy(size: tuple[int, int], width: int) -> None:
    labels = _blobs(1, size, 3)
    before = labels.copy()
    square = 2 * width + 1
    expected = ndimage.maximum_filter(labels, square) != ndimage.minimum_filter(labels, square)
    assert np.array_equal(boundary_band(labels, width), expected)
    assert np.array_equal(labels, before)


@pytest.mark.parametrize("px", [0, 1, 2, 9, 200])
@pytest.mark.parametrize("size", [(100, 150), (64, 96), (65, 96), (20, 300), (30, 30)])
def test_seam_band_equals_scipy(size: tuple[int, int], px: int) -> None:
    """Pixels that the dilated outline of some window reaches from either side, without the image's own border."""
    tiling = Tiling(64, 96, 48, 64)
    tops, lefts = tiling.placements(*size)
    expected = np.zeros(size, np.bool_)
    for top in tops:
        for left in lefts:
            inside = np.zeros(size, np.bool_)
            inside[top : top + 64, left : left + 96] = True
            for axis in (0, 1):
                line = np.ones((2 * px + 1, 1) if axis == 0 else (1, 2 * px + 1), np.bool_)
                near = ndimage.binary_dilation(inside, line) & ndimage.binary_dilation(~inside, line)
                # Windows form a grid: an edge of one column of windows runs over the whole height.
                expected |= near.any(1 - axis, keepdims=True) if near.any() else near
    assert np.array_equal(seam_band(tiling, *size, px), expected)


def test_one_window_has_no_seam() -> None:
    assert not seam_band(Tiling(64, 96, 48, 64), 64, 96, 5).any()


def test_agreement_is_counted_where_asked_and_adds_up() -> None:
    a = np.array([[0, 1, 2, 3]], np.uint8)
    b = np.array([[0, 1, 3, 2]], np.uint8)
    band = np.array([[False, True, True, False]])
    assert label_agreement(a, b) == LabelAgreement(2, 4)
    assert label_agreement(a, b, band) == LabelAgreement(1, 2)
    total = label_agreement(a, b) + label_agreement(a, b, band)
    assert (total, total.share) == (LabelAgreement(3, 6), 0.5)
    assert label_agreement(a, b, ~(band | ~band)).share is None
    with pytest.raises(DeployError, match="one shape"):
        label_agreement(a, b[:, :2])
    with pytest.raises(DeployError, match="mask"):
        label_agreement(a, b, band[:, :2])


@pytest.mark.parametrize("call", [lambda: boundary_band(np.zeros((2, 2), np.uint8), -1),
                                  lambda: seam_band(Tiling(8, 8, 8, 8), 9, 9, -1)])  # fmt: skip
def test_negative_widths_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DeployError, match="expected 0 or more"):
        call()
