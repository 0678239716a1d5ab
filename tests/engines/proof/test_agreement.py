"""A gate passes what rounding does to a network, wherever it is undecided, and nothing that is wrong with one."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from engines.contract import Float32
from engines.errors import GateError
from engines.proof.agreement import ANY, GATES, OPTIONS, Gate, compare_labels, compare_logits, confidence, decisions
from tests.pipeline.precision.lowering import exported

REDUCED = ("fp16", "bf16", "int8")


@pytest.fixture(scope="module")
def reference() -> Float32:
    """The demo model's logits of a rendered street, (2, 8, 32, 32)."""
    return exported("demo", 128)[2]


def _noisy(reference: Float32, share: float) -> Float32:
    """Rounding as a network does it: by `share` of the spread, whether a place is decided or not."""
    spread = compare_logits("x", reference, "r", reference).spread
    assert spread is not None
    noise = np.random.default_rng(0).standard_normal(reference.shape, np.float32)
    return reference + np.float32(share * spread) * noise


@pytest.mark.parametrize("precision", REDUCED)
def test_labels_that_change_at_near_ties_are_no_error(reference: Float32, precision: str) -> None:
    """A network that is undecided nearly everywhere loses labels to the very rounding that leaves another one alone."""
    gate = GATES[precision]
    share = gate.max_relative / 4
    unsure = (0.1 * reference + np.random.default_rng(1).standard_normal(reference.shape)).astype(np.float32)
    lost = compare_logits("bf16", _noisy(unsure, share), "fp32", unsure, gate)
    assert lost.labels < 0.995
    assert lost.within(gate)
    same = replace(gate, ties=0.0)
    assert not compare_logits("bf16", _noisy(unsure, share), "fp32", unsure, same).within(same)


def _shifted(logits: Float32) -> Float32:
    return (logits + np.concatenate([logits[..., 1:], logits[..., -1:]], -1)) / 2


def _swapped(logits: Float32) -> Float32:
    first, second = np.argsort(np.bincount(logits.argmax(1).ravel(), minlength=logits.shape[1]))[-2:]
    result = logits.copy()
    result[:, [first, second]] = logits[:, [second, first]]
    return result


def _dead(logits: Float32) -> Float32:
    result = logits.copy()
    common = np.bincount(logits.argmax(1).ravel()).argmax()
    result[:, common] = logits[:, common].mean()
    return result


def _rows(logits: Float32) -> Float32:
    result = logits.copy()
    result[:, :, :1] = logits[:, :, -1:]
    return result


def _overflown(logits: Float32) -> Float32:
    result = logits.copy()
    result[0, 0, 0, 0] = 65504
    return result


@pytest.mark.parametrize("precision", ["fp32", *REDUCED])
@pytest.mark.parametrize("fault", [_shifted, _swapped, _dead, _rows, _overflown])
def test_what_is_wrong_is_caught_in_every_precision(reference: Float32, precision: str, fault) -> None:  # type: ignore[no-untyped-def]
    """Half a pixel, two classes for one another, a class that is a constant, a row from elsewhere, an overflow."""
    gate = GATES[precision]
    with pytest.raises(GateError, match="engine diverges from fp32"):
        compare_logits("engine", fault(reference), "fp32", reference, gate).require(gate)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_one_large_logit_is_not_the_map(precision: str) -> None:
    """fddwnet's INT8 had one logit in ten million off by half the largest, and was refused for it."""
    wanted = np.random.default_rng(0).standard_normal((1, 4, 256, 256), np.float32)
    got = wanted.copy()
    got[0, 1, 3, 3] += 4
    found = compare_logits("engine", got, "fp32", wanted, GATES[precision])
    assert found.relative is not None
    assert found.relative > 0.5
    assert found.within(GATES[precision])
    assert not found.within(GATES["fp32"])


def test_exact_ties_of_saturated_probabilities_are_no_divergence() -> None:
    wanted = np.zeros((1, 3, 8, 8), np.float32)
    wanted[:, :2, :4] = 1.0  # two sigmoids, both saturated
    wanted[:, 2, 4:] = 1.0
    got = wanted.copy()
    got[:, 0, :4] = np.nextafter(np.float32(1), np.float32(0))
    found = compare_logits("engine", got, "the checkpoint", wanted, GATES["fp32"])
    assert found.labels == 0.5
    assert found.decided == 1.0
    found.require(GATES["fp32"])


def test_labels_that_are_all_one_prove_nothing_and_logits_decide() -> None:
    """The network says `road` to everything; an engine that lost all but its last bias agrees in every label."""
    wanted = np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32) * np.float32(0.1)
    wanted[:, 1] += 10
    dead = np.broadcast_to(wanted.mean((0, 2, 3), keepdims=True), wanted.shape).astype(np.float32)
    found = compare_logits("engine", dead, "the checkpoint", wanted, GATES["int8"])
    assert found.labels == 1.0
    assert found.decided is None
    assert "which is no evidence: 100 % of them are one class" in str(found)
    with pytest.raises(GateError, match=r"100 % of them are one class"):
        found.require(GATES["int8"])
    compare_logits("engine", wanted.copy(), "the checkpoint", wanted, GATES["fp32"]).require(GATES["fp32"])


def test_one_channel_decides_at_its_threshold() -> None:
    logits = np.float32([[[[-3, -0.5, 0.5, 3]]]])
    labels, margin = decisions(logits)
    np.testing.assert_array_equal(labels[0, 0], [0, 0, 1, 1])
    np.testing.assert_allclose(margin[0, 0], [3, 0.5, 0.5, 3])
    np.testing.assert_array_equal(decisions(logits, threshold=0.7)[0][0, 0], [0, 0, 0, 1])


def test_margins_are_the_largest_less_the_second(reference: Float32) -> None:
    labels, margin = decisions(reference)
    ordered = np.sort(reference, axis=1)
    np.testing.assert_array_equal(labels, reference.argmax(1))
    np.testing.assert_array_equal(margin, ordered[:, -1] - ordered[:, -2])


def test_confidence_takes_no_softmax_of_a_softmax(reference: Float32) -> None:
    exponentials = np.exp(reference - reference.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    assert confidence(reference) == pytest.approx(probabilities.max(1).mean(), abs=1e-6)
    assert confidence(probabilities) == pytest.approx(confidence(reference), abs=1e-6)


def test_the_message_says_what_to_do(reference: Float32) -> None:
    sure = compare_logits("engine", _swapped(reference), "fp32", reference, GATES["bf16"])
    with pytest.raises(
        GateError, match=r"allowed 1\.2e-01.*required 99\.900 %.*--max-error R and --min-agreement"
    ) as error:
        sure.require(GATES["bf16"], OPTIONS)
    assert "unsure" not in str(error.value)
    with pytest.raises(GateError, match=r"itself is unsure of this picture .*--sample PHOTO or --calib DATASET"):
        compare_logits("engine", _swapped(reference) * 0.05, "fp32", reference * 0.05, GATES["bf16"]).require(
            GATES["bf16"]
        )


def test_masks_count_where_the_reference_is_decided() -> None:
    wanted = np.repeat(np.uint8([[0, 1]]), 8, 0)
    got = wanted.copy()
    got[0] = 1 - got[0]
    ties = np.zeros(wanted.shape, np.bool_)
    ties[0] = True
    assert compare_labels("mask", got, "fp32", wanted).decided == 1 - 2 / 16
    assert compare_labels("mask", got, "fp32", wanted, ties).decided == 1.0
    assert compare_labels("mask", got, "fp32", wanted, np.ones_like(ties)).decided is None


@pytest.mark.parametrize("gate", [*GATES.values(), ANY])
def test_gates_survive_a_report(gate: Gate) -> None:
    assert Gate.from_json(json.loads(json.dumps(gate.to_json(), allow_nan=False))) == gate


def test_reports_of_earlier_versions_keep_their_gate() -> None:
    assert Gate.from_json({"max_relative": 0.25, "min_labels": 0.99}) == Gate(
        0.25, 0.99, ties=0.0, norm="max", tail=math.inf
    )
    for broken in (
        None,
        [],
        {},
        {"max_relative": "1", "min_labels": 0.9},
        {"max_relative": 1, "min_labels": 1, "norm": 2},
    ):
        assert Gate.from_json(broken) is None


def test_what_labels_let_pass_is_the_gate_of_rebuilds(reference: Float32) -> None:
    """Where an mIoU decided, no labels will be at hand elsewhere: the engine there may lose what this one did."""
    gate = GATES["bf16"]
    rough = compare_logits("engine", _noisy(reference, 0.3), "fp32", reference, gate)
    assert not rough.within(gate)
    wide = rough.allowance(gate)
    assert compare_logits("engine", _noisy(reference, 0.3), "fp32", reference, wide).within(wide)
    assert not compare_logits("engine", _noisy(reference, 0.6), "fp32", reference, wide).within(wide)
    fine = compare_logits("engine", _noisy(reference, 0.001), "fp32", reference, gate)
    assert fine.allowance(gate) == gate
