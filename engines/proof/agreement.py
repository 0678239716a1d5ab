"""How closely a step agrees with the one before it, and how closely it must."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.contract import Float32, UInt8
from engines.errors import DeployError, GateError
from engines.spec import cut_of

Bool = NDArray[np.bool_]
Labels = NDArray[np.intp]

NORMS = ("max", "rms")
FLAT = 1e-2  # of the largest logit: a spread below that is a picture on which the network sees nothing
OUTLIERS = 1e-4  # of all logits may be beyond a gate's tail
ONE_LABEL = 0.999  # of all labels: where so many are one and the same, a dead network would have them too
FEW = 0.01  # of all labels: where fewer are decided, the others are too few to judge by
# Mean probability of the winning class.  Measured on the networks of tests and benchmarks: 0.69 to 0.97 on photographs
# like those that they were trained on, 0.54 to 0.59 on a rendered street that they never saw.
UNSURE = 0.6
OPTIONS = "build-engine --max-error R and --min-agreement P move this gate"


@dataclass(frozen=True)
class Gate:
    """What a step must keep of the one before.

    max_relative: of the logits' difference.  norm: ``max``, the largest |difference| over the largest |reference|, or
    ``rms``, the root of its mean square over the reference's spread (see Agreement).
    min_labels: share of equal labels, 0..1, among those that are decided.
    ties: a label is decided where its margin in the reference, the largest logit less the second, is at least this
    share of the spread; 0 counts every label.
    tail: largest |difference| over the largest |reference| of all logits but one in ten thousand: the rms may miss an
    error that is large in one place.
    """

    max_relative: float
    min_labels: float
    ties: float = 0.0
    norm: str = "max"
    tail: float = math.inf

    def but(self, max_relative: float | None, min_labels: float | None) -> Gate:
        """The same gate, with what the user asked for in place of its own; the tail is no tighter."""
        return replace(
            self,
            max_relative=self.max_relative if max_relative is None else max_relative,
            tail=self.tail if max_relative is None else max(self.tail, max_relative),
            min_labels=self.min_labels if min_labels is None else min_labels,
        )

    def to_json(self) -> dict[str, Any]:
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Any) -> Gate | None:
        """Inverse of `to_json`; None where `data` is no gate.  Earlier versions wrote neither ties nor norm."""
        if not isinstance(data, dict) or not {"max_relative", "min_labels"} <= set(data):
            return None
        given = {"ties": 0.0, "tail": None, "norm": "max", **data}
        numbers = [math.inf if given[name] is None else given[name] for name in ("max_relative", "tail")]
        numbers += [given["min_labels"], given["ties"]]
        norm = given["norm"]
        if norm not in NORMS or not all(isinstance(number, int | float) for number in numbers):
            return None
        limits = [float(number) for number in numbers]
        return cls(limits[0], min_labels=limits[2], ties=limits[3], norm=norm, tail=limits[1])


# In fp32 the steps of the published architectures differ by 1e-7 to 1e-5 relative; a wrong eps or GELU by 1e-2.
#
# Below fp32 every logit moves by rounding, and two that are nearly equal change places: how many do says how often the
# network is undecided, not how good the engine is.  One bf16 engine keeps 99.9 % of labels on photographs and 97 % on a
# scene that its network was never trained for, with the same error of the logits.  So the error is judged by its rms,
# over what the input makes of the logits (one value in ten million may be far off), and labels where the reference is
# decided by more than the error that is allowed: such a label can only change where an error is larger than rounding.
# Peers judge likewise: ggml's test-backend-ops by the normalised mean square, Polygraphy by quantiles on demand.
GATES = {
    "fp32": Gate(1e-3, 0.999, ties=1e-3),
    "fp16": Gate(3e-2, 0.9995, ties=3e-2, norm="rms", tail=3e-2),
    "bf16": Gate(1.2e-1, 0.999, ties=1.2e-1, norm="rms", tail=1.5e-1),
    "int8": Gate(3e-1, 0.99, ties=3e-1, norm="rms", tail=3.5e-1),
    "fp8": Gate(3e-1, 0.99, ties=3e-1, norm="rms", tail=3.5e-1),
}
ANY = Gate(math.inf, 0.0)  # only what is not finite fails: something else decides
SLACK = 1.5  # of what an engine was measured to lose, for the same graph compiled elsewhere


@dataclass(frozen=True)
class Agreement:
    """One step against its reference.  Differences are in logit units, and None where only labels are compared.

    labels: share of equal labels, all counted.  decided: share of equal ones among the labels that are no near-ties,
    None where that is no evidence: the reference has one label everywhere, or decides hardly any.
    near_ties, one_label: share of near-ties, and of the reference's most frequent label.
    rms: root of the mean square of the difference.  spread: of the reference about each class's mean, likewise: what
    the input makes of the logits, so that a network that answers the same to everything has none.
    outliers: share of logits beyond the tail of the gate that this was compared for.
    confidence: mean probability that the reference gives its label.
    """

    step: str
    reference: str
    labels: float
    max_abs: float | None = None
    mean_abs: float | None = None
    reference_max: float | None = None
    decided: float | None = None
    near_ties: float = 0.0
    one_label: float = 0.0
    rms: float | None = None
    spread: float | None = None
    outliers: float = 0.0
    confidence: float | None = None

    @property
    def relative(self) -> float | None:
        """The largest |difference| over the largest |reference|."""
        if self.max_abs is None or not self.reference_max:
            return self.max_abs
        return self.max_abs / self.reference_max

    @property
    def noise(self) -> float | None:
        """The rms of the difference over the spread, which counts as no less than FLAT of the largest logit."""
        if self.rms is None or self.spread is None or not self.rms:
            return self.rms
        scale = max(self.spread, FLAT * (self.reference_max or 0.0))
        return self.rms / scale if scale else self.rms

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "relative": self.relative, "noise": self.noise}

    def __str__(self) -> str:
        labels = f"{100 * self.labels:.3f} % of labels equal to {self.reference}"
        if self.labels < 1 and self.near_ties and self.decided is not None:
            labels += f", {100 * self.decided:.3f} % of those that are no near-ties"
        if self.decided is None:
            labels += f", which is no evidence: {self.no_evidence}"
        if self.max_abs is None:
            return labels
        rms = "" if self.noise is None else f" (rms {100 * self.noise:.2g} % of their spread)"
        return f"max |diff| {self.max_abs:.1e} on logits up to {self.reference_max:.1f}{rms}, {labels}"

    @property
    def no_evidence(self) -> str:
        """Why equal labels say nothing here; ``""`` where they do."""
        if self.one_label >= ONE_LABEL:
            return f"{100 * self.one_label:.4g} % of them are one class"
        return "" if self.decided is not None else f"{100 * self.near_ties:.4g} % of them are near-ties"

    def within(self, gate: Gate) -> bool:
        near = self._error(gate) <= gate.max_relative and self.outliers <= OUTLIERS
        return near and (self.decided is None or self.decided >= gate.min_labels)

    def _error(self, gate: Gate) -> float:
        """By the gate's norm; without labels as evidence, a network with large biases is held to what varies, too."""
        strict = gate.norm == "rms" or (self.decided is None and self.max_abs is not None)
        return max((self.noise or 0.0) if strict else 0.0, (self.relative or 0.0) if gate.norm == "max" else 0.0)

    def allowance(self, gate: Gate) -> Gate:
        """`gate` as far as this needs it wider: what decided here, labels, will not be there for a rebuild."""
        lost = 0.0 if self.decided is None else SLACK * (1 - self.decided)
        error = self._error(gate)
        wide = gate.but(max(gate.max_relative, SLACK * error), min(gate.min_labels, 1 - lost))
        return replace(wide, tail=max(gate.tail, SLACK * (self.relative or 0.0)))

    def require(self, gate: Gate, options: str = "") -> None:
        """Raise GateError unless this stays inside `gate`.  options: what the user can do about it."""
        if self.within(gate):
            return
        error = self._error(gate)
        kind = "rms of the difference over the spread" if gate.norm == "rms" else "relative difference"
        beyond = (
            "" if self.outliers <= OUTLIERS else f"{100 * self.outliers:.2g} % of logits off by more than "
            f"{100 * gate.tail:.2g} % of the largest (allowed {100 * OUTLIERS:g} %), "
        )  # fmt: skip
        labels = f"labels are no evidence, {self.no_evidence}" if self.decided is None else (
            f"{100 * self.decided:.3f} % of decided labels equal (required {100 * gate.min_labels:.3f} %)"
        )  # fmt: skip
        unsure = "" if self.confidence is None or self.confidence >= UNSURE else (
            f"; the network itself is unsure of this picture (mean probability {self.confidence:.2f}): verify on a "
            "photograph like those that it was trained on, --sample PHOTO or --calib DATASET"
        )  # fmt: skip
        raise GateError(
            f"{self.step} diverges from {self.reference}: {kind} {error:.1e} (allowed {gate.max_relative:.1e}), "
            f"{beyond}{labels}{unsure}{f'; {options}' if options else ''}"
        )


def compare_logits(
    step: str, got: Float32, reference_name: str, reference: Float32, gate: Gate = ANY, threshold: float | None = None
) -> Agreement:
    """Compare logits (M, K, h, w).  gate: says which labels are near-ties.  threshold: of one channel, see `decisions`.

    Raises DeployError on a shape mismatch, GateError when `got` is not finite.
    """
    if got.shape != reference.shape:
        raise DeployError(f"{step}: got logits {got.shape}, expected {reference.shape} as in {reference_name}")
    if not np.isfinite(reference).all():
        raise DeployError(f"{reference_name}: its logits are NaN or infinite; check the weights, mean and std")
    bad = int(np.count_nonzero(~np.isfinite(got)))
    if bad:
        raise GateError(f"{step}: {bad} of {got.size} logits are NaN or infinite, while {reference_name} is finite")
    difference = np.abs(got - reference)
    largest = float(np.abs(reference).max())
    outliers = 0.0 if gate.tail == math.inf else np.count_nonzero(difference > gate.tail * largest) / difference.size
    scale = spread(reference)
    wanted, margin = decisions(reference, threshold)
    found = compare_labels(
        step, decisions(got, threshold)[0], reference_name, wanted, margin < gate.ties * scale if gate.ties else None
    )
    return replace(
        found,
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        reference_max=largest,
        outliers=outliers,
        rms=math.sqrt(float(np.square(difference, out=difference).mean(dtype=np.float64))),
        spread=scale,
        confidence=confidence(reference, threshold),
    )


def compare_labels(
    step: str, got: UInt8 | Labels, reference_name: str, reference: UInt8 | Labels, ties: Bool | None = None
) -> Agreement:
    """Compare label maps of one shape.  ties: where the reference is undecided; None: nowhere."""
    equal = got == reference
    one = float(np.bincount(reference.reshape(-1)).max() / reference.size)
    near = 0.0 if ties is None else float(ties.mean())
    evidence = one < ONE_LABEL and 1 - near > FEW
    decided = float((equal if ties is None else equal[~ties]).mean()) if evidence else None
    return Agreement(step, reference_name, float(equal.mean()), decided=decided, near_ties=near, one_label=one)


def decisions(logits: Float32, threshold: float | None = None) -> tuple[Labels, Float32]:
    """Labels (M, h, w) of logits (M, K, h, w), and their margins: the largest logit less the second.

    One channel decides between two classes: 1 where its sigmoid exceeds `threshold` (0.5).
    """
    if logits.shape[1] == 1:
        above = logits[:, 0] - np.float32(_cut(threshold))
        return (above > 0).astype(np.intp), np.abs(above)
    best, second = logits[:, 0].copy(), np.full_like(logits[:, 0], -np.inf)
    for channel in range(1, logits.shape[1]):
        values = logits[:, channel]
        np.maximum(second, np.minimum(best, values), out=second)
        np.maximum(best, values, out=best)
    return logits.argmax(1), best - second


def _cut(threshold: float | None) -> float:
    return 0.0 if threshold is None else cut_of(threshold)


def spread(logits: Float32) -> float:
    """Root of the mean square about each class's mean, over all windows and places of logits (M, K, h, w)."""
    variances = [logits[:, channel].var(dtype=np.float64) for channel in range(logits.shape[1])]
    return math.sqrt(float(np.mean(variances)))


def confidence(logits: Float32, threshold: float | None = None) -> float:
    """Mean probability of the winning class, of at most 128 places a side; as it is where these are probabilities."""
    step = max(1, max(logits.shape[2:]) // 128)
    some = logits[:, :, ::step, ::step].astype(np.float64)
    if some.shape[1] == 1:
        return float((1 / (1 + np.exp(-np.abs(some - _cut(threshold))))).mean())
    best = some.max(1, keepdims=True)
    if are_probabilities(some):
        return float(best.mean())
    return float((1 / np.exp(some - best).sum(1)).mean())


def are_probabilities(values: NDArray[np.floating[Any]]) -> bool:
    """Whether (M, K, h, w) sum to one over the classes: then a softmax was taken already."""
    return bool(values.min() >= 0 and np.abs(values.sum(1) - 1).max() < 1e-3)
