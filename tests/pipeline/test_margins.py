"""A U-Net as in its paper, which pads nothing: its tiled masks are those of the whole image, padded by reflection."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import deploy
from calib.data.scenes import render
from calib.ranges.ranges import Ranges
from engines.bundle import open_bundle
from engines.segmenter import open_segmenter
from engines.views.views import ImageViews
from tests import models

SIDE, LABELLED = 100, 60  # of a window, and of its labelled part
MEAN, STD = np.array((123.675, 116.28, 103.53)), np.array((58.395, 57.12, 57.375))


class _Block(nn.Sequential):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__(nn.Conv2d(channels, out, 3), nn.ReLU(), nn.Conv2d(out, out, 3), nn.ReLU())


class UNet(nn.Module):
    def __init__(self, depth: int = 2, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_Block(*pair) for pair in zip([3, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, 2) for size in sizes[-2::-1])
        self.decode = nn.ModuleList(_Block(2 * size, size) for size in sizes[-2::-1])
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up, self.decode, strict=True):
            x, skip = up(x), skips.pop()
            top, left = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
            x = block(torch.cat([skip[:, :, top : top + x.shape[2], left : left + x.shape[3]], x], 1))
        return self.classify(x)


def unpadded() -> nn.Module:
    """Its classes are as likely as each other on a street."""
    module = models.randomise(UNet())
    with torch.no_grad():
        module.classify.bias -= module(_normalised(render(0, 200, 200).image)).mean((0, 2, 3))
    return module


def _normalised(image: np.ndarray) -> Tensor:
    return torch.from_numpy(((image - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32))


def _whole(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the whole image run at once, reflected around itself, and where they are no near-ties."""
    border, (height, width) = (SIDE - LABELLED) // 2, image.shape[:2]
    below, right = (max(size, LABELLED) - size + border for size in (height, width))
    around = np.pad(image, ((border, below), (border, right), (0, 0)), "reflect")
    with torch.inference_mode():
        logits = unpadded()(_normalised(around))[0, :, :height, :width].numpy()
    ranked = np.sort(logits, 0)
    return logits.argmax(0), ranked[-1] - ranked[-2] > 1e-4 * np.abs(logits).max()


@pytest.fixture(scope="module", params=["factory", "onnx"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    model = "tests.pipeline.test_margins:unpadded"
    if request.param == "onnx":
        model = str(folder / "net.onnx")
        with warnings.catch_warnings():  # of the exporter's own libraries
            warnings.simplefilter("ignore")
            torch.onnx.export(unpadded(), (torch.zeros(1, 3, SIDE, SIDE),), model, dynamo=True, verbose=False)
    arguments = ["build-engine", model, "-o", str(folder / "b"), "--tile", str(SIDE), "--padding", "reflect"]
    assert deploy.main([*arguments, "--backend", "openvino"]) == 0
    return folder / "b"


# Sizes at which the last windows, which end at the image's edge, lie at multiples of the poolings as well.
@pytest.mark.parametrize("size", [(300, 420), (284, 332), (60, 64), (40, 52), (9, 64)], ids=str)
def test_masks_are_those_of_the_whole_image(bundle: Path, size: tuple[int, int]) -> None:
    image = render(3, 300, 420).image[-size[0] :, -size[1] :]
    labels, clear = _whole(image)
    with open_segmenter(bundle) as (segmenter, _):
        got = segmenter.segment(image).labels
        bands = np.concatenate([band.labels for band in segmenter.bands(image)])
    assert np.array_equal(got[clear], labels[clear])
    assert np.array_equal(bands, got)
    assert clear.mean() > 0.99
    assert len(np.unique(labels)) > 1


def test_the_manifest_says_what_is_labelled(bundle: Path) -> None:
    tiling = open_bundle(bundle).manifest.tiling
    assert (tiling.margin, tiling.labelled, tiling.stride_h) == ((20, 20, 20, 20), (LABELLED, LABELLED), LABELLED)


def test_views_are_run_with_their_margins_too(bundle: Path) -> None:
    image = render(3, 120, 180).image
    with open_segmenter(bundle) as (segmenter, _):
        plain = segmenter.segment(image).labels
    with open_segmenter(bundle, views=lambda _: ImageViews(scales=(1.0,))) as (segmenter, _):
        assert (segmenter.segment(image).labels == plain).mean() > 0.999


def test_calibration_sees_what_lies_around(tmp_path: Path) -> None:
    """The ranges of windows that cover an image are those of the image, padded by reflection."""
    image = render(3, 120, 180).image
    Image.fromarray(image).save(tmp_path / "a.png")
    model, ranges = "tests.pipeline.test_margins:unpadded", tmp_path / "r.json"
    arguments = ["calibrate", model, str(tmp_path / "a.png"), "-o", str(ranges), "--tile", str(SIDE)]
    assert deploy.main([*arguments, "--padding", "reflect", "--method", "max"]) == 0
    border = (SIDE - LABELLED) // 2
    around = np.pad(image, ((border, border), (border, border), (0, 0)), "reflect")
    seen = {round(value.amax, 4) for value in Ranges.load(ranges).tensors.values()}
    assert round(float(_normalised(around).abs().max()), 4) in seen


def test_a_stride_by_what_is_seen_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = "tests.pipeline.test_margins:unpadded"
    assert deploy.main(["build-engine", model, "-o", str(tmp_path / "b"), "--tile", "100", "--stride", "auto"]) == 2
    assert "not padded" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
