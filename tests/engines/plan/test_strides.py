"""Which stride is taken, for a share and for a budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.errors import DeployError
from engines.plan.strides import StrideShare, choose, shares_of

SHARES = [
    StrideShare(32, 32, 0.99), StrideShare(64, 64, 0.97), StrideShare(96, 96, 0.9), StrideShare(128, 128, 0.5),
]  # fmt: skip
MS = {32: 400.0, 64: 100.0, 96: 100.0, 128: 50.0}


def _ms(stride: tuple[int, int]) -> float:
    return MS[stride[0]]


def test_the_largest_stride_that_keeps_the_share() -> None:
    assert choose(SHARES, 0.95).stride == (64, 64)
    assert choose(SHARES, 0.5).stride == (128, 128)


def test_a_share_that_no_stride_keeps_is_refused() -> None:
    with pytest.raises(DeployError, match=r"got at most 0\.990 of the receptive field's energy, at a stride of 32x32"):
        choose(SHARES, 0.995)


def test_what_costs_nothing_more_is_taken() -> None:
    """Windows are moved back to the image's edge, so that a smaller stride often needs no more of them."""
    assert choose(SHARES, 0.9, _ms).stride == (64, 64)


@pytest.mark.parametrize(
    ("share", "budget", "stride"), [(0.9, 100, 64), (0.98, 100, 64), (0.98, 60, 128), (0.999, 500, 32)]
)
def test_a_budget_takes_the_best_that_fits(share: float, budget: float, stride: int) -> None:
    assert choose(SHARES, share, _ms, budget).stride == (stride, stride)


def test_a_budget_that_nothing_meets_is_refused() -> None:
    with pytest.raises(DeployError, match="--budget-ms 20: got 50 ms even at a stride of 128x128"):
        choose(SHARES, 0.9, _ms, 20)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"strides": []}', "KeyError"),
        ('{"window": [8, 8], "strides": []}', r"fields in a window of \(8, 8\), expected the bundle's \(64, 96\)"),
        ('{"window": [64, 96], "strides": []}', "no list of strides"),
        ('{"window": [64, 96], "strides": [1]}', "no list of strides"),
        ('{"window": [64, 96], "strides": [{"stride_h": 1, "stride_w": 1}]}', "share is missing"),
    ],
)
def test_a_file_that_holds_no_fields_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "receptive-field.json"
    path.write_text(text)
    with pytest.raises(DeployError, match=said):
        shares_of(path, (64, 96))


def test_fields_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "receptive-field.json"
    path.write_text(json.dumps({"window": [64, 96], "strides": [each.to_json() for each in SHARES]}))
    assert shares_of(path, (64, 96)) == tuple(SHARES)
