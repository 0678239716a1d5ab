"""MapAgreement with the reference, against SciPy's distance transform and plain counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from engines.tiling.placement import Tiling
from pipeline.compare.tally import EDGE_PX, SEAM_PX, Tally

TILING = Tiling(32, 32, 24, 24)


def _labels(seed: int, height: int, width: int) -> np.ndarray:
    """Blobs of four classes."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((4, height, width)), (0, 6, 6))
    return smooth.argmax(0).astype(np.uint8)


def _near_another(labels: np.ndarray, reach: int) -> np.ndarray:
    """Pixels from which a pixel of another class is at most `reach` away in the chessboard metric."""
    near = np.zeros(labels.shape, bool)
    for label in np.unique(labels):
        near |= (labels == label) & (ndimage.distance_transform_cdt(labels == label, "chessboard") <= reach)
    return near


def test_shares_are_those_of_all_pixels_of_all_images() -> None:
    tally = Tally(4, TILING)
    pairs, edges, seams = [], [], []
    for seed, (height, width) in enumerate([(70, 90), (48, 61)]):
        reference, candidate = _labels(seed, height, width), _labels(seed + 10, height, width)
        share = tally.add(reference, candidate)
        equal = reference == candidate
        assert share == equal.mean()
        pairs.append((reference.ravel(), candidate.ravel()))
        edges.append(equal[_near_another(reference, EDGE_PX)])
        band = np.zeros((height, width), bool)
        for top in TILING.placements(height, width)[0]:
            for row in (top, top + 32):
                if 0 < row < height:
                    band[max(0, row - SEAM_PX) : row + SEAM_PX] = True
        for left in TILING.placements(height, width)[1]:
            for column in (left, left + 32):
                if 0 < column < width:
                    band[:, max(0, column - SEAM_PX) : column + SEAM_PX] = True
        seams.append(equal[band])
    result = tally.result()
    reference, candidate = (np.concatenate(side) for side in zip(*pairs, strict=True))
    assert result.labels == pytest.approx((reference == candidate).mean(), abs=1e-12)
    assert result.edges == pytest.approx(np.concatenate(edges).mean(), abs=1e-12)
    assert result.seams == pytest.approx(np.concatenate(seams).mean(), abs=1e-12)
    expected = [
        ((reference == k) & (candidate == k)).sum() / ((reference == k) | (candidate == k)).sum() for k in range(4)
    ]
    assert result.by_class == pytest.approx(expected, abs=1e-12)


def test_single_windows_have_no_seams_and_one_class_has_no_edges() -> None:
    tally = Tally(3, TILING)
    tally.add(np.ones((30, 20), np.uint8), np.ones((30, 20), np.uint8))
    result = tally.result()
    assert (result.labels, result.edges, result.seams) == (1.0, None, None)
    assert result.by_class == (None, 1.0, None)
