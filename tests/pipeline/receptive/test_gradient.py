"""Effective fields, of networks whose answer is known and against other ways to find it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import signal
from torch import nn

from engines.errors import DeployError
from pipeline.receptive.field import Field
from pipeline.receptive.gradient import measure
from pipeline.receptive.graph import tapped_graph
from pipeline.receptive.perturbation import perturbed
from pipeline.receptive.units import OUTPUT, taps_of
from tests import models
from tests.pipeline.receptive import networks
from tests.pipeline.receptive.networks import conv, first, positive


def _noise(height: int, width: int, count: int = 1) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 3, height, width)).astype(np.float32) for _ in range(count)]


def _output(module: nn.Module, size: tuple[int, int] = (64, 64), count: int = 1) -> Field:
    (field,) = measure(module, _noise(*size, count), size)
    return field


def test_a_pointwise_network_sees_one_pixel() -> None:
    field = _output(positive(first(1), conv(1)))
    assert field.extent() == (1, 1)
    assert field.gradient[32, 32] == 1
    assert field.radii() == field.half_sides() == [0, 0, 0, 0]


def test_a_dilated_convolution_sees_its_nine_taps() -> None:
    field = _output(positive(first(dilation=5)))
    assert sorted(zip(*np.nonzero(field.gradient), strict=True)) == [
        (32 + dy, 32 + dx) for dy in (-5, 0, 5) for dx in (-5, 0, 5)
    ]


def test_the_seven_convolutions_reach_50_pixels_and_see_far_fewer() -> None:
    """50 is right as the theoretical field, along both axes; what is seen is much smaller, as Luo et al. say."""
    field = _output(networks.seven(), (96, 96))
    assert field.extent() == (50, 50)
    assert field.stride == (4, 4)
    assert field.centre == (49.5, 49.5)
    assert field.half_sides((0.95,))[0] < 15


def test_a_linear_stack_is_the_convolution_of_its_kernels() -> None:
    layers = [first(), *(conv(5) for _ in range(3))]
    field = _output(positive(*layers))
    kernel = layers[0].weight[0].double().numpy().mean(0)
    for layer in layers[1:]:
        kernel = signal.convolve2d(kernel, layer.weight[0, 0].double().numpy())
    half = kernel.shape[0] // 2
    np.testing.assert_allclose(
        field.gradient[32 - half : 33 + half, 32 - half : 33 + half], kernel / kernel.sum(), rtol=1e-5
    )


def test_a_random_network_sees_a_gaussian() -> None:
    """Of n random 3x3 layers the variance at a pixel is a convolution of n boxes of variance 2/3 along each axis; the
    mean |gradient| is its square root, so that its variance is twice as large: 4n/3.
    """
    layers, width = 20, 24
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Conv2d(3 if not i else width, width, 3, padding=1) for i in range(layers)))
    for layer in network:
        nn.init.normal_(layer.weight, std=(9 * width) ** -0.5)  # type: ignore[arg-type]
    field = _output(network.requires_grad_(False).eval(), count=12)
    sigma = (4 * layers / 3) ** 0.5
    assert field.deviation() == pytest.approx((sigma, sigma), rel=0.06)
    away = np.arange(64) - 32
    bell = np.exp(-(away[:, None] ** 2 + away[None] ** 2) / (2 * sigma**2))
    assert np.corrcoef(field.gradient.ravel(), bell.ravel())[0, 1] > 0.98
    assert field.half_sides((0.99,))[0] < layers  # the theoretical half side


def test_fields_are_averages_over_images() -> None:
    module, windows = models.tiny(), _noise(64, 96, 2)
    both = measure(module, windows, (64, 96))[0]
    assert both.images == 2
    one = measure(module, windows[:1], (64, 96))[0]
    assert not np.allclose(both.gradient, one.gradient)
    assert both.gradient.sum() == pytest.approx(1)


def test_the_gradient_is_what_small_changes_of_pixels_do() -> None:
    """Central differences in float64, of the very mix of channels that is differentiated."""
    module = models.tiny().double()
    (window,) = _noise(64, 96)
    signs = torch.from_numpy(np.random.default_rng([0, 0]).choice((-1.0, 1.0), 5))
    field = measure(models.tiny(), [window], (64, 96))[0]
    image = torch.from_numpy(window).double()

    def unit(x: torch.Tensor) -> float:
        with torch.no_grad():
            return float((module(x)[0, :, 8, 12] * signs).sum())

    found, places = [], [(34, 50), (36, 49), (20, 50), (34, 80), (5, 5)]
    for row, column in places:
        slopes = []
        for channel in range(3):
            step = torch.zeros_like(image)
            step[0, channel, row, column] = 1e-5
            slopes.append(abs(unit(image + step) - unit(image - step)) / 2e-5)
        found.append(np.mean(slopes))
    seen = np.array([field.gradient[place] for place in places])
    np.testing.assert_allclose(seen / seen[0], np.array(found) / found[0], rtol=2e-3)


def test_stages_see_more_and_more_and_the_decoder_is_seen_before_and_after_it_fuses() -> None:
    module = models.tiny()
    taps = taps_of(module, (128, 128))
    fields = measure(module, _noise(128, 128, 2), (128, 128), taps)
    assert [field.name for field in fields] == [
        "stage 1", "stage 2", "stage 3", "stage 4", "before fusing", "after fusing", OUTPUT,
    ]  # fmt: skip
    assert [field.stride[0] for field in fields] == [4, 8, 16, 32, 4, 4, 4]
    halves = [field.radii((0.5,))[0] for field in fields[:4]]
    assert halves == sorted(halves)


@pytest.mark.parametrize(
    ("name", "size"),
    [("tiny_conv_head", (64, 96)), ("tiny_setr", (64, 64)), ("tiny_pup", (64, 96)), ("tiny_mla", (64, 96))],
)
def test_every_decoder_has_fields(name: str, size: tuple[int, int]) -> None:
    module = getattr(models, name)()
    fields = measure(module, _noise(*size), size, taps_of(module, size))
    assert fields[-1].name == OUTPUT
    assert len(fields) >= 4
    for field in fields:
        assert field.gradient.shape == field.extent() == size  # attention sees all


def test_transformers_own_segformer_has_stages_too() -> None:
    """Nothing is known of it: a stage is the last map of each resolution before the encoder ends."""
    module = models.tiny_transformers()
    taps = taps_of(module, (64, 96))
    assert [tap.name.split()[0] for tap in taps] == ["1/4", "1/8", "1/16", "1/32"]
    fields = measure(module, _noise(64, 96), (64, 96), taps)
    assert [field.stride[0] for field in fields] == [4, 8, 16, 32, 4]


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (networks.labels(), "zero at every pixel"),
        (networks.frozen(), "not differentiable"),
        (nn.Sequential(nn.Conv2d(3, 2, 1), networks.Argmax()), "not differentiable"),
    ],
)
def test_what_has_no_gradient_is_refused(module: nn.Module, why: str) -> None:
    with pytest.raises(DeployError, match=why):
        measure(module.requires_grad_(False), _noise(64, 64), (64, 64))


def test_changes_of_pixels_find_the_energy_that_the_gradient_has() -> None:
    """Of a linear network, whose gradient is the same everywhere: what is left is chance, and falls with images."""
    module, size = networks.seven(), (96, 96)
    model = tapped_graph(module, (), size)
    found = perturbed(model, _noise(*size, 8), size)
    field = _output(module, size)
    blocks = (16, 6, 16, 6)
    energy, expected = (one.energy.reshape(blocks).sum((1, 3)) for one in (found, field))
    assert (found.centre, found.stride) == (field.centre, field.stride)
    assert (energy[expected == 0] < 1e-6).all()
    for axis in (0, 1):
        assert np.abs(energy.sum(axis) - expected.sum(axis)).sum() < 0.35
    assert found.radii((0.9,))[0] == pytest.approx(field.radii((0.9,))[0], abs=4)


def test_a_constant_network_is_refused() -> None:
    module = nn.Conv2d(3, 2, 1).requires_grad_(False)
    nn.init.zeros_(module.weight)
    with pytest.raises(DeployError, match="got no change of the decoder output"):
        perturbed(tapped_graph(module, (), (32, 32)), _noise(32, 32), (32, 32))
