"""Folders of segmentation_models_pytorch, judged by the library itself, where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoints import load_model
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.onnx_graph import run_onnx
from tests.pipeline.checkpoints.published import refusal

WINDOW = (64, 64)
NETWORKS = {
    "Unet": {"encoder_name": "resnet18"},
    "Segformer": {"encoder_name": "mit_b0"},
    "UPerNet": {"encoder_name": "resnet18"},
    "FPN": {"encoder_name": "resnet18"},
    "DeepLabV3Plus": {"encoder_name": "resnet18"},
    "DPT": {"encoder_name": "tu-vit_tiny_patch16_224", "dynamic_img_size": True},
}
IMAGE = torch.randn(1, 3, *WINDOW, generator=torch.Generator().manual_seed(2))
pytestmark = pytest.mark.filterwarnings("ignore")  # of a library that is not ours


@pytest.fixture(scope="module")
def library() -> ModuleType:
    try:
        import segmentation_models_pytorch
    except (ImportError, RuntimeError) as error:  # torchvision beside a PyTorch that it was not built for
        pytest.skip(f"segmentation_models_pytorch cannot be imported here: {str(error).splitlines()[0]}")
    found: ModuleType = segmentation_models_pytorch
    return found


def make(library: ModuleType, folder: Path, name: str = "Unet", **more: Any) -> Any:
    model = getattr(library, name)(encoder_weights=None, classes=5, **(NETWORKS[name] | more)).eval()
    random = torch.Generator().manual_seed(1)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=random)
        elif tensor.is_floating_point() and tensor.ndim < 2:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=random))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_the_librarys(name: str, library: ModuleType, tmp_path: Path) -> None:
    model = make(library, tmp_path, name)
    source = load_source(str(tmp_path), WINDOW, SourceOptions())
    with torch.no_grad():
        expected = model(IMAGE).numpy()
    assert expected.std() > 1e-3
    assert np.abs(source.logits([IMAGE.numpy()]) - expected).max() < 1e-4
    graph, _ = source.export()
    assert np.abs(run_onnx(graph, [IMAGE.numpy()]) - expected).max() < 1e-4
    assert (source.spec.architecture, source.spec.variant) == (name, NETWORKS[name]["encoder_name"])


def test_an_activation_is_left_out_and_said(library: ModuleType, tmp_path: Path) -> None:
    model = make(library, tmp_path, activation="softmax2d")
    loaded = load_model(str(tmp_path), window=WINDOW)
    with torch.no_grad():
        assert torch.allclose(loaded.module(IMAGE).softmax(1), model(IMAGE), atol=1e-5)
    assert any("softmax2d" in remark for remark in loaded.remarks)


def test_a_pth_beside_the_config(library: ModuleType, tmp_path: Path) -> None:
    model = make(library, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"state_dict": {f"model.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "a.pth")
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path), window=WINDOW).module(IMAGE), model(IMAGE))


@pytest.mark.parametrize(("name", "mean", "remark"), [("Unet", 123.675, "assumed"), ("DPT", 127.5, "timm's vit_tiny")])
def test_preprocessing_is_timms_or_assumed(
    name: str, mean: float, remark: str, library: ModuleType, tmp_path: Path
) -> None:
    make(library, tmp_path, name)
    loaded = load_model(str(tmp_path), window=WINDOW)
    assert loaded.spec.mean[0] == pytest.approx(mean)
    assert any(remark in said for said in loaded.remarks)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_model_class": "os.system"}, "got 'os.system', expected one of"),
        ({"in_channels": 4}, "in_channels: got 4"),
        ({"encoder_name": "nothing"}, "refuses its config.json"),
        ({"classes": 7}, "segmentation_head"),
    ],
)
def test_configs_that_do_not_fit(fields: dict[str, Any], message: str, library: ModuleType, tmp_path: Path) -> None:
    make(library, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert message in refusal(lambda: load_model(str(tmp_path), window=WINDOW))


def test_weights_must_fit(library: ModuleType, tmp_path: Path) -> None:
    make(library, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["segmentation_head.0.bias"]
    save_file(state, tmp_path / "model.safetensors")
    assert "segmentation_head.0.bias" in refusal(lambda: load_model(str(tmp_path), window=WINDOW))
