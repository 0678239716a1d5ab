"""A decoder's tail in C against PyTorch's convolution and interpolation in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.kernel_cases import TAILS, TailCase
from engines.contract import packed
from engines.errors import DeployError
from engines.tiling.tail import Tail, TailShape

SEGFORMER = TailShape(256, 256, 32, 256, 19, ((128, 128), (64, 64), (32, 32)))


def _expected(case: TailCase, maps: np.ndarray) -> np.ndarray:
    tail, shape = case.tail(), case.shape
    project, bias, classify, class_bias = (torch.from_numpy(array).double() for array in tail.weights)
    offsets, _ = packed([case.windows * int(np.prod(size)) for size in shape.outputs])
    given = [
        torch.from_numpy(maps[offset : offset + case.windows * int(np.prod(size))]).double()
        .reshape(case.windows, *size).permute(0, 3, 1, 2)
        for offset, size in zip(offsets, shape.outputs, strict=True)
    ]  # fmt: skip
    hidden = bias[None, :, None, None].expand(case.windows, -1, shape.height, shape.width)
    if shape.inputs:
        hidden = hidden + F.conv2d(given.pop(0), project.T[:, :, None, None])
    for each in given:
        hidden = hidden + F.interpolate(each, size=(shape.height, shape.width), mode="bilinear", align_corners=False)
    logits = F.conv2d(hidden.relu(), classify.T[:, :, None, None], class_bias)
    return logits[:, : shape.classes].numpy()


@pytest.mark.parametrize("case", TAILS, ids=str)
def test_logits_are_those_of_convolution_and_interpolation_in_float64(case: TailCase) -> None:
    maps = case.maps("float32")
    expected = _expected(case, maps)
    got = case.tail().logits(maps, case.windows, threads=2)
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max()


def test_threads_do_not_change_a_bit() -> None:
    case = TAILS[1]
    maps = case.maps("float32")
    once = case.tail().logits(maps, case.windows, threads=1)
    assert all(np.array_equal(once, case.tail().logits(maps, case.windows, threads=n)) for n in (2, 5, 64))


def test_the_bytes_are_those_of_small_maps_in_and_logits_out() -> None:
    small = 2 * (32 * 65536 + 256 * (128 * 128 + 64 * 64 + 32 * 32))
    assert SEGFORMER.bytes(2) == small + 4 * 19 * 65536
    assert SEGFORMER.macs == 65536 * 256 * (32 + 9 + 19)
    assert SEGFORMER.unfit() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "got sizes"),
        ({"inputs": -4}, "-4 inputs"),
        ({"inputs": 30}, "multiples of 4"),
        ({"channels": 254}, "multiples of 4"),
        ({"classes": 161}, "161 classes, expected 160"),
        ({"maps": ((1, 1),) * 6}, "6 resized maps, expected 5"),
        ({"maps": ((257, 4),)}, "no larger ones"),
        ({"inputs": 128}, "shared memory"),
        ({"width": 2**20, "maps": ((1, 2**20),), "channels": 4096}, "rows of 4294967296 values"),
    ],
)
def test_what_no_kernel_is_made_for_is_refused(changes: dict[str, object], message: str) -> None:
    wrong = replace(SEGFORMER, **changes)  # type: ignore[arg-type]
    with pytest.raises(DeployError, match=message):
        TailShape.from_json(wrong.__dict__)
    assert TailShape.from_json(SEGFORMER.__dict__) == SEGFORMER


def test_weights_and_maps_of_another_size_are_refused() -> None:
    case = TAILS[0]
    tail, maps = case.tail(), case.maps("float32")
    for wrong, windows in ((maps[:-1], 1), (maps, 2), (maps.astype(np.float64), 1), (np.repeat(maps, 2)[::2], 1)):
        with pytest.raises(DeployError, match=r"tail: got maps .*expected \(\d+,\) float32"):
            tail.logits(wrong, windows)
    project, bias, classify, class_bias = tail.weights
    with pytest.raises(DeployError, match="tail: got weights"):
        Tail.of(case.shape, project, bias, classify.T[:19], class_bias[:19])
