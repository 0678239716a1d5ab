"""How closely a step agrees with the one before it, and how closely it must."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engines.contract import Float32, UInt8
from engines.errors import DeployError, GateError


@dataclass(frozen=True)
class Gate:
    """max_relative: largest |difference| over the largest |reference|.  min_labels: share of equal labels, 0..1."""

    max_relative: float
    min_labels: float

    def but(self, max_relative: float | None, min_labels: float | None) -> Gate:
        """The same gate, with what the user asked for in place of its own."""
        return Gate(
            self.max_relative if max_relative is None else max_relative,
            self.min_labels if min_labels is None else min_labels,
        )


# In fp32 the steps of the published architectures differ by 1e-7 to 1e-5 relative; a wrong eps or GELU by 1e-2.
# Below fp32, the worst measured with every tensor rounded: on SegFormer-B0 (demo and CamVid weights) fp16 0.1 % of the
# largest logit and 99.98 % of labels, bf16 1.2 % and 99.8 %, int8 5 % and 99.0 %; on four convolutional networks with
# full-resolution logits (Cityscapes, a CamVid photograph) bf16 up to 11 % with 99.9 % of labels, int8 up to 25 % with
# 99.5 %: one pixel's logit in ten million, not the map.  So labels decide, and the difference has to catch what labels
# may miss: an overflow, a dead layer or a useless scale on an image of one class.
GATES = {
    "fp32": Gate(1e-3, 0.999),
    "fp16": Gate(1e-2, 0.998),
    "bf16": Gate(2.5e-1, 0.99),
    "int8": Gate(5e-1, 0.97),
}


@dataclass(frozen=True)
class Agreement:
    """One step against its reference.  Differences are in logit units, and None where only labels are compared."""

    step: str
    reference: str
    labels: float
    max_abs: float | None = None
    mean_abs: float | None = None
    reference_max: float | None = None

    @property
    def relative(self) -> float | None:
        if self.max_abs is None or not self.reference_max:
            return self.max_abs
        return self.max_abs / self.reference_max

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "relative": self.relative}

    def __str__(self) -> str:
        labels = f"{100 * self.labels:.3f} % of labels equal to {self.reference}"
        if self.max_abs is None:
            return labels
        return f"max |diff| {self.max_abs:.1e} on logits up to {self.reference_max:.1f}, {labels}"

    def within(self, gate: Gate) -> bool:
        return (self.relative or 0.0) <= gate.max_relative and self.labels >= gate.min_labels

    def require(self, gate: Gate) -> None:
        """Raise GateError unless this stays inside `gate`."""
        if not self.within(gate):
            raise GateError(
                f"{self.step} diverges from {self.reference}: relative difference {self.relative or 0.0:.1e} "
                f"(allowed {gate.max_relative:.1e}), {100 * self.labels:.3f} % of labels equal "
                f"(required {100 * gate.min_labels:.3f} %)"
            )


def compare_logits(step: str, got: Float32, reference_name: str, reference: Float32) -> Agreement:
    """Compare logits (M, K, h, w).  Raises DeployError on a shape mismatch, GateError when `got` is not finite."""
    if got.shape != reference.shape:
        raise DeployError(f"{step}: got logits {got.shape}, expected {reference.shape} as in {reference_name}")
    if not np.isfinite(reference).all():
        raise DeployError(f"{reference_name}: its logits are NaN or infinite; check the weights, mean and std")
    bad = int(np.count_nonzero(~np.isfinite(got)))
    if bad:
        raise GateError(f"{step}: {bad} of {got.size} logits are NaN or infinite, while {reference_name} is finite")
    difference = np.abs(got - reference)
    return Agreement(
        step,
        reference=reference_name,
        labels=float((got.argmax(1) == reference.argmax(1)).mean()),
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        reference_max=float(np.abs(reference).max()),
    )


def compare_labels(step: str, got: UInt8, reference_name: str, reference: UInt8) -> Agreement:
    """Compare label maps (H, W)."""
    return Agreement(step, reference_name, float((got == reference).mean()))
