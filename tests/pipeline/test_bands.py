"""Networks of 1, 2, 4 and 13 bands from the command line: masks are ONNX Runtime's on the values that were written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tifffile
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

import deploy
from engines.bundle import open_bundle
from engines.images.read import read_image

SIDE = 48
RNG = np.random.default_rng(7)


def _network(path: Path, bands: int) -> Path:
    weights = [
        numpy_helper.from_array((RNG.normal(size=shape) * 0.4).astype(np.float32), name)
        for name, shape in (("w", (32, bands, 3, 3)), ("v", (32, 32, 3, 3)), ("u", (5, 32, 1, 1)))
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "u"], ["out"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, bands, SIDE, SIDE])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 5, SIDE, SIDE])], weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def _images(folder: Path, bands: int, count: int = 4) -> list[np.ndarray]:
    """Noise of 12 bits, smooth enough to have parts of one label."""
    folder.mkdir()
    found = []
    for index in range(count):
        coarse = RNG.integers(0, 4096, (SIDE // 8, SIDE // 8, bands))
        values = coarse.repeat(8, 0).repeat(8, 1).astype(np.uint16)
        planar = {"planarconfig": "contig"} if bands > 1 else {}
        tifffile.imwrite(folder / f"{index}.tif", values, photometric="minisblack", **planar)
        found.append(values)
    return found


def _labels(path: Path, values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.rint(values.clip(0, 4095).astype(np.float64) * 255 / 4095)
    window = ((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    scores = onnxruntime.InferenceSession(path).run(None, {"image": window})[0][0]
    ranked = np.sort(scores, 0)
    return scores.argmax(0), ranked[-1] - ranked[-2] > 1e-3 * np.abs(scores).max()


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_masks_are_those_of_the_file(tmp_path: Path, bands: int) -> None:
    path, values = _network(tmp_path / "m.onnx", bands), _images(tmp_path / "images", bands)
    mean, std = RNG.uniform(90, 150, bands).round(2), RNG.uniform(40, 80, bands).round(2)
    words = ["--mean", ",".join(map(str, mean)), "--std", ",".join(map(str, std)), "--scale", "0..4095"]
    argv = ["build-engine", str(path), "-o", str(tmp_path / "b"), "--tile", str(SIDE), "--backend", "openvino", *words]
    calib = [] if bands != 4 else ["--precision", "int8", "--calib", str(tmp_path / "images"), "--rest", "fp32"]
    assert deploy.main([*argv, "--threads", "1", *calib]) == 0
    spec = open_bundle(tmp_path / "b").manifest.spec
    assert (spec.mean, spec.std, spec.scale) == (tuple(mean), tuple(std), (0.0, 4095.0))
    assert (
        deploy.main(["run", str(tmp_path / "b"), str(tmp_path / "images"), "-o", str(tmp_path / "o"), "--overlay"]) == 0
    )
    for index, each in enumerate(values):
        expected, clear = _labels(path, each, mean, std)
        mask = np.asarray(Image.open(tmp_path / "o" / f"{index}.png"))
        assert (mask == expected)[clear].mean() >= (0.97 if calib else 1.0)
        assert read_image(tmp_path / "o" / f"{index}.overlay.jpg").shape == (SIDE, SIDE, 3)
    assert deploy.main(["bench", str(tmp_path / "b"), "--rounds", "1", "--warmup", "1"]) == 0


def test_bands_and_hidden_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network of three bands on a file of four, with a nodata value; and what is said of it."""
    path = _network(tmp_path / "m.onnx", 3)
    argv = ["build-engine", str(path), "-o", str(tmp_path / "b"), "--tile", str(SIDE), "--backend", "openvino"]
    three = ["--mean", "0,0,0", "--std", "255,255,255"]
    assert deploy.main([*argv, *three, "--bands", "4,3,2", "--threads", "1"]) == 0
    values = _images(tmp_path / "images", 4, 1)[0]
    values[:5] = 9999
    tag = (42113, "s", 0, "9999", True)
    (tmp_path / "images" / "0.tif").unlink()
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig", extratags=[tag])
    capsys.readouterr()
    run = ["run", str(tmp_path / "b"), str(tmp_path / "a.tif"), "-o", str(tmp_path / "o")]
    assert deploy.main(run) == 0
    assert (
        "a.tif uses 0..9999 of 16 bits and comes out 7 times too dark; --scale 0..16383" not in capsys.readouterr().out
    )
    mask = np.asarray(Image.open(tmp_path / "o" / "a.png"))
    assert (mask[:5] == 255).all()
    assert (mask[5:] < 5).all()
    assert deploy.main([*run, "--scale", "0..4095", "--keep-nodata"]) == 0
    kept = np.asarray(Image.open(tmp_path / "o" / "a.png"))
    expected, clear = _labels(path, values[:, :, [3, 2, 1]], np.zeros(3), np.full(3, 255.0))
    assert (kept[:5] < 5).all()
    assert (kept == expected)[clear].all()
    assert deploy.main([*run, "--bands", "1,2"]) == 2
    assert "--bands 1,2: got 2, expected 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mean", "1,2,3"], "--mean 1,2,3: got 3, expected 4, one for each channel"),
        (["--bands", "1,2,3"], "--bands 1,2,3: got 3, expected 4, one for each channel"),
        (["--bgr"], "channel order: got 'BGR' of 4, expected RGB or BGR of 3"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _network(tmp_path / "m.onnx", 4)
    assert deploy.main(["build-engine", str(path), "-o", str(tmp_path / "b"), "--tile", str(SIDE), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_bundle_of_before_reads_rgb(tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    for name in ("bands", "scale"):
        del manifest["spec"][name]
    from engines.spec import COLOUR, ModelSpec

    assert ModelSpec.from_json(manifest["spec"]).pixels == COLOUR


class _Bands(nn.Module):
    """Its first module is no convolution of the image."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(16, 5, 1)
        self.encode = nn.Sequential(nn.Conv2d(bands, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.encode(x))


def of_bands(bands: int, said: bool = True) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Identity(), nn.Conv2d(bands, 5, 3, padding=1)) if not said else _Bands(bands)
    if said:
        module.mean, module.std = [100.0] * bands, [60.0] * bands  # type: ignore[assignment]
    return module


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("bands", [1, 4])
def test_a_factory_takes_any_number_of_bands(
    tmp_path: Path, bands: int, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how many by its mean; where it does not, its first convolution does, and values become 0..1."""
    values = _images(tmp_path / "images", bands, 2)
    model = "tests.pipeline.test_bands:of_bands"
    words = [model, "--arg", f"bands={bands}", "--arg", f"said={said}", "--tile", str(SIDE)]
    argv = ["build-engine", *words, "-o", str(tmp_path / "b"), "--backend", "openvino", "--scale", "0..4095"]
    assert deploy.main([*argv, "--threads", "1"]) == 0
    assert (f"{bands} band(s), passed on as 0..1" in capsys.readouterr().out) is not said
    assert deploy.main(["run", str(tmp_path / "b"), str(tmp_path / "images"), "-o", str(tmp_path / "o")]) == 0
    mean, std = (100.0, 60.0) if said else (0.0, 255.0)
    for index, each in enumerate(values):
        pixels = np.rint(each.astype(np.float64) * 255 / 4095)
        window = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32))
        with torch.inference_mode():
            scores = of_bands(bands, said)(window)[0].numpy()
        ranked = np.sort(scores, 0)
        clear = ranked[-1] - ranked[-2] > 1e-3 * np.abs(scores).max()
        mask = np.asarray(Image.open(tmp_path / "o" / f"{index}.png"))
        assert np.array_equal(mask[clear], scores.argmax(0)[clear])


@pytest.mark.parametrize("onnx_file", [True, False])
def test_how_far_a_network_of_four_bands_sees(tmp_path: Path, onnx_file: bool) -> None:
    _images(tmp_path / "images", 4, 2)
    model = [str(_network(tmp_path / "m.onnx", 4))] if onnx_file else ["tests.pipeline.test_bands:of_bands"]
    more = [] if onnx_file else ["--arg", "bands=4"]
    for data in ([], ["--data", str(tmp_path / "images")]):
        argv = ["receptive-field", *model, *more, "--tile", str(SIDE), "--windows", "2", *data]
        assert deploy.main([*argv, "-o", str(tmp_path / "f")]) == 0
        body = json.loads((tmp_path / "f" / "receptive-field.json").read_text())
        assert body["fields"][-1]["theory"]["local"] == [5, 5]
