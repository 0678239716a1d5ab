"""Theoretical fields: the graph's account is held against what autograd finds of networks that cannot cancel."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from pipeline.graph.reach.theory import Reach, reaches
from pipeline.receptive.gradient import measure
from pipeline.receptive.graph import tapped_graph
from pipeline.receptive.units import OUTPUT, taps_of
from tests import models
from tests.pipeline.receptive import networks
from tests.pipeline.receptive.networks import Branches, Resized, conv, first, positive


def _told(module: nn.Module, size: tuple[int, int]) -> dict[str, Reach]:
    return reaches(tapped_graph(module, taps_of(module, size), size))


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("one", positive(first(5))),
        ("seven", networks.seven()),
        ("strides", positive(first(7, stride=4), conv(3, stride=2), conv(3))),
        ("dilated", positive(first(3, dilation=2), conv(3, stride=2), conv(3, dilation=3))),
        ("even kernels", positive(first(4, stride=4, padding=0), conv(2, stride=2, padding=0))),
        ("max pooling", positive(first(), nn.AvgPool2d(3, 2, 1), conv())),
        ("up by two", positive(first(3, stride=2), Resized(2))),
        ("up by four", positive(first(3, stride=4), Resized(4))),
        ("up by three halves", positive(first(3, stride=2), Resized(1.5))),
        ("down by two", positive(first(3), Resized(0.5))),
        ("corners", positive(first(3, stride=2), Resized(2, align=True))),
        ("transposed", positive(first(3, stride=2), nn.ConvTranspose2d(1, 1, 4, 2, 1, bias=False), conv())),
        ("branches", positive(first(1), Branches([conv(3), conv(3, dilation=7)]))),
        ("padded", positive(nn.ZeroPad2d((2, 0, 1, 1)), first(3, stride=1, padding=0))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_graph_tells_what_the_gradient_finds(name: str, module: nn.Module) -> None:
    size = (96, 96)
    window = np.random.default_rng(0).random((1, 3, *size)).astype(np.float32)
    (field,) = measure(module, [window], size)
    rows, columns = np.nonzero(field.gradient.any(1))[0], np.nonzero(field.gradient.any(0))[0]
    told = reaches(tapped_graph(module, (), size))[OUTPUT]
    assert told == Reach(
        (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1), corner=(rows[0], columns[0]), key_strides=()
    )


def test_seven_convolutions_and_two_poolings_are_50_pixels() -> None:
    told = _told(networks.seven(), (96, 96))
    assert told[OUTPUT].local == (50, 50)
    assert not told[OUTPUT].key_strides


@pytest.mark.parametrize("name", ["tiny", "tiny_conv_head", "tiny_transformers"])
def test_segformer_reaches_everywhere_through_keys_at_32_pixels(name: str) -> None:
    """Local, of a stage with kernel k, stride s and b depthwise 3x3 convolutions: + ((k - 1) + 2 s b) * jump."""
    told = list(_told(getattr(models, name)(), (64, 96)).values())
    assert [reach.local[0] for reach in told[:4]] == [15, 39, 87, 183]
    assert {reach.key_strides for reach in told} == {(32,)}
    assert told[-1].local == (215, 215)  # stage 4, and a neighbour of it by the bilinear resize


@pytest.mark.parametrize(("name", "output"), [("tiny_pup", 96), ("tiny_mla", 128)])
def test_setr_reaches_everywhere_through_keys_at_16_pixels(name: str, output: int) -> None:
    """A class token among the keys, or none."""
    told = list(_told(getattr(models, name)(), (64, 96)).values())
    assert {reach.key_strides for reach in told} == {(16,)}
    assert told[0].local == (16, 16)
    assert told[-1].local == (output, output)


def test_pooling_of_the_whole_map_is_told() -> None:
    module = positive(first(3), Branches([conv(3), nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(1))]))
    told = _told(module, (64, 64))[OUTPUT]
    assert told.local == (5, 5)
    assert told.key_strides == (1,)


def test_what_cannot_be_followed_is_said() -> None:
    module = positive(first(3), nn.PixelUnshuffle(2), nn.Conv2d(4, 1, 3, padding=1, bias=False))
    told = _told(module, (64, 64))[OUTPUT]
    assert told.declined
    assert "not told" in str(told)
