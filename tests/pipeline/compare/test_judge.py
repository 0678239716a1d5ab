"""Which rows pass and which is shipped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.errors import DeployError
from pipeline.compare.judge import Limits, judge, verdict
from pipeline.compare.rows import Comparison, Row
from pipeline.compare.tally import MapAgreement
from tests.pipeline.compare.recorded import comparison, rows, timing


def _rows(c: Comparison) -> dict[str, Row]:
    return {row.precision: row for row in c.candidates}


def _with(c: Comparison, **engine_ms: float) -> Comparison:
    """The same comparison with other engine times."""
    changed = [
        replace(r, timing=timing(engine_ms[r.precision])) if r.precision in engine_ms else r for r in c.candidates
    ]
    return verdict(replace(c, rows=(c.reference, *changed)))


def test_a_row_passes_within_the_allowed_drop_only() -> None:
    passed = {precision: row.passed for precision, row in _rows(comparison()).items()}
    assert passed == {"fp32": True, "bf16": True, "int8": False, "auto": True, "fp16": False}
    assert _rows(comparison())["int8"].reasons == ("mIoU drops by 1.07 points, allowed 0.5",)
    assert _rows(comparison(limits=Limits(max_drop=1.1)))["int8"].passed
    assert not _rows(comparison(limits=Limits(max_drop=0)))["bf16"].passed
    assert _rows(comparison(limits=Limits(max_drop=0)))["fp32"].passed


def test_a_gain_is_no_drop() -> None:
    base, fp32, *_ = rows()
    better = replace(fp32, miou=(base.miou or 0) + 0.01)
    assert judge(better, base, Limits(max_drop=0)).passed


def test_agreement_decides_without_labels_and_must_be_sane_with_them() -> None:
    assert not _rows(comparison(labelled=False))["int8"].passed
    assert "98.71 % of labels" in _rows(comparison(labelled=False))["int8"].reasons[0]
    assert _rows(comparison(labelled=False, limits=Limits(min_agreement=0.98)))["int8"].passed
    base, fp32, *_ = rows()
    chance = replace(fp32, agreement=MapAgreement(0.9, None, None, ()))  # the same mIoU, from other masks
    assert not judge(chance, base, Limits().for_data(labelled=True)).passed
    assert not _rows(comparison(limits=Limits(min_agreement=0.998)))["auto"].passed
    assert _rows(comparison(limits=Limits(min_agreement=0.998)))["bf16"].passed


def test_a_least_miou_holds_for_every_row() -> None:
    failed = _rows(comparison(limits=Limits(min_miou=0.776)))
    assert failed["fp32"].passed
    assert failed["bf16"].reasons == ("mIoU 77.57 %, required 77.6 %",)


def test_a_row_that_was_not_measured_fails_for_its_own_reason() -> None:
    assert "NaN" in _rows(comparison())["fp16"].reasons[0]


def test_the_fastest_that_passes_is_shipped() -> None:
    assert comparison().ship == "auto openvino"
    assert _with(comparison(), auto=2000.0).ship == "bf16 openvino"


def test_of_equally_fast_ones_the_most_faithful_is_shipped() -> None:
    chosen = _with(comparison(), auto=690.0 * 0.99)
    assert chosen.ship == "bf16 openvino"
    assert "auto is as fast and keeps fewer labels" in chosen.verdict


def test_the_verdict_says_when_plain_bf16_beats_int8() -> None:
    lenient = _with(comparison(limits=Limits(max_drop=5)), auto=2000.0)
    assert lenient.verdict.startswith("ship bf16 openvino: 703 ms a frame, 3.2x PyTorch, 99.86 % of labels kept")
    assert "int8 is 1.10x slower: plain bf16 beats it" in lenient.verdict


def test_the_verdict_says_what_failing_costs() -> None:
    faster = _with(comparison(), int8=300.0)
    assert "int8 fails (mIoU drops by 1.07 points, allowed 0.5), though 2.09x as fast" in faster.verdict


def test_nothing_is_shipped_when_nothing_passes() -> None:
    none = comparison()
    none = verdict(
        replace(none, rows=(none.reference, *(replace(r, passed=False, reasons=("no",)) for r in none.candidates)))
    )
    assert none.ship is None
    assert none.verdict.startswith("ship none of them: fp32: no; bf16: no")


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"max_drop": -1}, "--max-drop"), ({"max_drop": float("nan")}, "--max-drop"), ({"min_agreement": 99.8}, "0 to 1")],
)
def test_limits_out_of_range_are_refused(limits: dict[str, float], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        Limits(**limits)


def test_a_least_miou_needs_labels() -> None:
    with pytest.raises(DeployError, match="without labels"):
        Limits(min_miou=0.7).for_data(labelled=False)
