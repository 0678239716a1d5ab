"""Which rows pass, and which one to ship."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from engines.errors import DeployError
from pipeline.compare.rows import Comparison, Row, drop, percent

# Medians closer than this are one: repeated runs on an idle machine differ by as much.
SAME_SPEED = 1.03
# Where there are labels the mIoU decides, but on few images two quite different models may score the same by accident.
LABELLED_AGREEMENT, UNLABELLED_AGREEMENT = 0.95, 0.99


@dataclass(frozen=True)
class Limits:
    """What a precision must keep to pass.

    max_drop: percentage points of mIoU below the reference.  min_agreement: share of labels equal to the reference's,
    0..1; None requires LABELLED_AGREEMENT where there are labels, and UNLABELLED_AGREEMENT where there are none.
    min_miou: share, 0..1, or None.
    """

    max_drop: float = 0.5
    min_agreement: float | None = None
    min_miou: float | None = None

    def __post_init__(self) -> None:
        if not self.max_drop >= 0:
            raise DeployError(f"--max-drop: got {self.max_drop}, expected 0 or more percentage points of mIoU")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise DeployError(f"--min-agreement: got {self.min_agreement}, expected a share, 0 to 1 (0.998 is 99.8 %)")
        if self.min_miou is not None and not 0 <= self.min_miou <= 1:
            raise DeployError(f"--fail-under: got {self.min_miou}, expected an mIoU, 0 to 1")

    def for_data(self, labelled: bool) -> Limits:
        """These limits with the default of `min_agreement` filled in.  Raises DeployError: an mIoU needs labels."""
        if not labelled and self.min_miou is not None:
            raise DeployError(
                f"--fail-under {100 * self.min_miou:g} %: got data without labels, expected some to score; "
                "give --fail-under without a number, or --min-agreement"
            )
        if self.min_agreement is not None:
            return self
        return replace(self, min_agreement=LABELLED_AGREEMENT if labelled else UNLABELLED_AGREEMENT)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(row: Row, reference: Row, limits: Limits) -> Row:
    """`row` with `passed` and the reasons against it.  One that was never measured keeps its own reasons."""
    if not row.measured or row.agreement is None:
        return replace(row, passed=False)
    reasons = []
    lost = drop(reference, row)
    if lost is not None and lost > limits.max_drop:
        reasons.append(f"mIoU drops by {lost:.2f} points, allowed {limits.max_drop:g}")
    share = row.agreement.labels
    if limits.min_agreement is not None and share < limits.min_agreement:
        reasons.append(f"{100 * share:.2f} % of labels as in fp32 PyTorch, required {100 * limits.min_agreement:g} %")
    if limits.min_miou is not None and row.miou is not None and row.miou < limits.min_miou:
        reasons.append(f"mIoU {100 * row.miou:.2f} %, required {100 * limits.min_miou:g} %")
    return replace(row, passed=not reasons, reasons=tuple(reasons))


def verdict(comparison: Comparison) -> Comparison:
    """Fill in which row to ship and why: the fastest that passes; among equally fast ones, the most faithful."""
    passing = [row for row in comparison.candidates if row.passed and row.measured]
    if not passing:
        reasons = "; ".join(f"{row.precision}: {', '.join(row.reasons)}" for row in comparison.candidates)
        return replace(comparison, ship=None, verdict=f"ship none of them: {reasons}")
    fastest = min(_ms(row) for row in passing)
    equals = [row for row in passing if _ms(row) <= SAME_SPEED * fastest]
    best = max(equals, key=lambda row: row.agreement.labels if row.agreement else 0.0)
    text = f"ship {best.name}: {_describe(best, comparison)}"
    others = [_against(row, best) for row in comparison.candidates if row is not best]
    return replace(comparison, ship=best.name, verdict="; ".join([text, *others]))


def _describe(row: Row, comparison: Comparison) -> str:
    assert row.agreement is not None
    lost, slow = drop(comparison.reference, row), comparison.yardstick
    change = "" if lost is None else f", mIoU {0.0 - round(lost, 2):+.2f} points"
    kept = f"{percent(row.agreement.labels)} % of labels kept{change}"
    return f"{_ms(row):.0f} ms a frame, {row.speedup:.1f}x {BASELINES.get(slow.backend, slow.name)}, {kept}"


def _against(row: Row, best: Row) -> str:
    if not row.measured:
        return f"{row.precision} could not be built or run"
    ratio = _ms(row) / _ms(best)
    if not row.passed:
        speed = f", though {1 / ratio:.2f}x as fast" if ratio < 1 else " and is no faster either"
        return f"{row.precision} fails ({', '.join(row.reasons)}){speed}"
    if ratio <= SAME_SPEED:
        kept, most = (0.0 if each.agreement is None else each.agreement.labels for each in (row, best))
        return f"{row.precision} is as fast and keeps {'fewer' if kept < most else 'as many'} labels"
    plain = f"plain {best.precision} beats it" if row.precision == "int8" else f"is slower than {best.precision}"
    return f"{row.precision} {plain if row.precision != 'int8' else f'is {ratio:.2f}x slower: {plain}'}"


def _ms(row: Row) -> float:
    assert row.timing is not None
    return row.timing.frame.p50


BASELINES = {
    "torch": "PyTorch", "onnxruntime": "ONNX Runtime", "torch_cuda": "PyTorch on the GPU",
    "torch_compile": "torch.compile on the GPU",
}  # fmt: skip
