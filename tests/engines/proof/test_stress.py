"""Stress inputs: made from the sample, the same everywhere, and an engine must be finite on every one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from calib.data.scenes import render
from engines.errors import GateError
from engines.proof.agreement import ANY, GATES
from engines.proof.golden import Golden
from engines.proof.stress import NAMES, PICTURES, compare_stress, grid, on_stress, stress_images


def test_there_is_one_of_each() -> None:
    image = render(0, 64, 160).image
    made = dict(zip(NAMES, stress_images(image, 64, 96), strict=True))
    assert {each.shape for each in made.values()} == {(64, 96, 3)}
    assert {each.dtype for each in made.values()} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(made["inverted"], 255 - image[:, :96])
    assert made["all 255"].min() == 255
    assert made["all 0"].max() == 0
    assert made["brightened"].mean() > image[:, :96].mean() > made["darkened"].mean()
    assert set(np.unique(made["saturated"])) == {0, 255}
    assert abs(float(np.corrcoef(made["noise"][:, :-1].ravel(), made["noise"][:, 1:].ravel())[0, 1])) < 0.05
    again = stress_images(image, 64, 96)
    assert all((a == b).all() for a, b in zip(again, made.values(), strict=True))


def test_the_mosaic_shows_a_part_of_each() -> None:
    mosaic, *others = stress_images(render(0, 64, 96).image, 64, 96)
    for index, image in enumerate(others):
        rows = slice(32 * (index // 4), 32 * (index // 4) + 32)
        columns = slice(24 * (index % 4), 24 * (index % 4) + 24)
        np.testing.assert_array_equal(mosaic[rows, columns], image[rows, columns])


def test_a_photograph_smaller_than_the_window_fills_it() -> None:
    small = render(0, 40, 50).image
    made = stress_images(small, 64, 160)
    assert made[0].shape == (64, 160, 3)
    np.testing.assert_array_equal(made[3][:40, :50], 255 - small)
    assert made[3][63, 159].any()


def test_the_input_that_breaks_an_engine_is_named() -> None:
    reference = np.random.default_rng(0).standard_normal((len(NAMES), 3, 8, 8)).astype(np.float32)
    got = [each[None].copy() for each in reference]
    found = compare_stress("stress", got, "fp32", reference, on_stress(GATES["fp16"], "fp16"))
    assert (found.labels, found.max_abs) == (1.0, 0.0)
    got[NAMES.index("all 255")][0, 0, 0, 0] = math.inf
    with pytest.raises(GateError, match="1 of 192 logits are NaN or infinite on the sample's variant 'all 255'"):
        compare_stress("stress", got, "fp32", reference, ANY)
    reference[NAMES.index("all 255")] = math.nan  # the network itself has no answer to that
    compare_stress("stress", got, "fp32", reference, ANY)


@pytest.mark.parametrize(("name", "refused"), [("brightened", True), ("checkerboard", False)])
def test_engines_agree_on_pictures(name: str, refused: bool) -> None:
    reference = np.random.default_rng(0).standard_normal((len(NAMES), 3, 8, 8)).astype(np.float32)
    got = [each[None].copy() for each in reference]
    got[NAMES.index(name)] *= -1
    gate = on_stress(GATES["bf16"], "bf16")
    assert (NAMES.index(name) < PICTURES) == refused
    if not refused:
        compare_stress("stress", got, "fp32", reference, gate)
        return
    with pytest.raises(GateError, match="stress diverges"):
        compare_stress("stress", got, "fp32", reference, gate)


def test_a_golden_keeps_them_and_does_without(tmp_path: Path) -> None:
    image = render(0, 64, 96).image
    logits = np.zeros((1, 3, 64, 96), np.float32)
    labels = np.zeros((64, 96), np.uint8)
    stress, ties = grid(np.ones((9, 3, 64, 96), np.float32)), labels > 0
    Golden.sample(image, logits, labels, "fp32", ties=ties, stress=stress).save(tmp_path / "new.npz")
    Golden.sample(image, logits, labels, "fp32").save(tmp_path / "old.npz")
    new, old = (Golden.load((tmp_path / name).read_bytes()) for name in ("new.npz", "old.npz"))
    assert new.stress is not None
    assert new.stress.shape[2] <= 32
    np.testing.assert_array_equal(new.stress, stress)
    assert (old.ties, old.stress) == (None, None)
