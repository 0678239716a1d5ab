"""Folders of transformers' other networks: their own outputs, their graph, every precision, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import deploy
from calib.data.scenes import render
from calib.ranges.split import split
from engines.tiling.placement import Tiling
from pipeline.build import build_bundle
from pipeline.checkpoints import load_model
from pipeline.checkpoints.families.registry import FAMILIES
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.exact import exact_graph
from pipeline.graph.export import simplify
from pipeline.graph.onnx_graph import run_onnx
from pipeline.request import BuildRequest
from tests.pipeline.checkpoints.families.tiny import DENSE, LABELS, MASKS, SIDE, make, own
from tests.pipeline.checkpoints.published import refusal, transformers

WINDOW = (SIDE, SIDE)
TOLERANCE = 1e-4
LOW = {"upernet-swin": 4, "upernet-convnext": 4, "dpt": 1, "beit": 4, "data2vec-vision": 4, "mobilevit": 32,
       "mobilevitv2": 32, "mobilenet_v2": 8, "sapiens2": 4}  # fmt: skip
PICTURE = torch.randn(1, 3, *WINDOW, generator=torch.Generator().manual_seed(2))
pytestmark = pytest.mark.filterwarnings("ignore")  # of a library that is not ours


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}
    for name in (*DENSE, *MASKS):
        folder = tmp_path_factory.mktemp("family") / name
        made[name] = folder, make(name, folder)
    return made


@pytest.fixture
def copied(folders: dict[str, tuple[Path, Any]], tmp_path: Path) -> Any:
    """A folder that the test may change."""

    def copy(name: str) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        for file in folders[name][0].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    return copy


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | fields))


@pytest.mark.parametrize("name", [*DENSE, *MASKS])
def test_outputs_are_the_librarys(name: str, folders: dict[str, tuple[Path, Any]]) -> None:
    folder, model = folders[name]
    loaded = load_model(str(folder), window=WINDOW)
    reference = own(name, model, PICTURE, folder)
    with torch.no_grad():
        got = loaded.module(PICTURE)
    assert reference.std() > 0.01
    if name in DENSE:  # where the resize was left out, it is done here as the runtime does it
        assert got.shape[2:] == (SIDE // LOW[name],) * 2
        got = torch.nn.functional.interpolate(got, size=reference.shape[2:], mode="bilinear", align_corners=False)
    assert got.shape == reference.shape
    assert (got - reference).abs().max() < TOLERANCE
    assert loaded.spec.classes == tuple(LABELS.values())
    assert loaded.spec.logits_stride == (LOW[name] if name in DENSE else SIDE // reference.shape[2])
    assert loaded.spec.architecture == json.loads((folder / "config.json").read_text())["model_type"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DENSE, *MASKS])
def test_the_graph_is_the_network(name: str, folders: dict[str, tuple[Path, Any]]) -> None:
    source = load_source(str(folders[name][0]), WINDOW, SourceOptions())
    windows = [np.random.default_rng(seed).normal(size=(1, 3, *WINDOW)).astype(np.float32) for seed in range(2)]
    graph, _ = source.export()
    assert np.abs(run_onnx(graph, windows) - source.logits(windows)).max() < TOLERANCE
    assert {node.domain for node in simplify(graph).model.graph} == {""}  # operators that every backend has


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precisions"),
    [
        ("upernet-swin", ("fp32", "bf16", "fp16", "int8")),
        ("eomt", ("fp32", "bf16", "fp16", "int8")),
        ("mask2former", ("fp32", "bf16", "fp16", "int8")),
        ("oneformer", ("fp32", "bf16", "int8")),
    ],
)
def test_every_precision_passes_its_gate(
    name: str, precisions: tuple[str, ...], folders: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for seed in range(4):
        Image.fromarray(render(seed, 96, 160).image).save(photographs / f"{seed}.png")
    request = BuildRequest(
        str(folders[name][0]), tmp_path / "b", Tiling(SIDE, window_w=SIDE, stride_h=48, stride_w=48),
        photographs=split([str(photographs)]),
    )  # fmt: skip
    said: list[tuple[str, str]] = []
    exact = exact_graph(load_source(request.model, WINDOW, request.options), request, lambda *line: said.append(line))
    for precision in precisions:
        asked = replace(request, precision=precision, output=tmp_path / precision)
        manifest = build_bundle(asked, lambda *line: said.append(line), exact)
        assert manifest.spec.classes == tuple(LABELS.values())


def test_inspect(folders: dict[str, tuple[Path, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main(["inspect", str(folders["eomt"][0]), "--tile", str(SIDE)]) == 0
    said = capsys.readouterr().out
    assert "eomt" in said
    assert "road, car, sky, tree, wall" in said
    assert "assumed: mean and std of ImageNet" in said


def test_exactly_one_family_takes_a_folder(folders: dict[str, tuple[Path, Any]]) -> None:
    for name, (folder, _) in folders.items():
        config = json.loads((folder / "config.json").read_text())
        assert sum(family.matches(config) for family in FAMILIES) == 1, name


def test_preprocessing_of_mobilevit_is_not_imagenets(copied: Any) -> None:
    """Its processor has no mean and turns RGB to BGR, and its file says neither."""
    folder = copied("mobilevit")
    edit(folder / "preprocessor_config.json", image_processor_type="MobileViTImageProcessor")
    spec = load_model(str(folder), window=WINDOW).spec
    assert (spec.mean, spec.std, spec.channel_order) == ((0, 0, 0), (255, 255, 255), "BGR")


@pytest.mark.parametrize("damage", ["missing", "more", "nan", "encoder alone"])
def test_weights_must_fit(damage: str, copied: Any) -> None:
    folder = copied("upernet-swin")
    key = "decode_head.classifier.weight"
    state = load_file(folder / "model.safetensors")
    if damage == "missing":
        del state[key]
    elif damage == "more":
        key = "neck.scale"
        state[key] = torch.ones(2)
    elif damage == "nan":
        state[key][0] = float("nan")
    else:
        state = {name: value for name, value in state.items() if name.startswith("backbone.")}
        key = "decode_head."
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert key in refusal(lambda: load_model(str(folder), window=WINDOW))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("eomt", {"image_size": 128}, "give --tile 128x128"),
        ("upernet-swin", {"model_type": "yolo"}, "got model_type 'yolo', expected one of segformer, beit"),
        ("upernet-swin", {"hidden_size": "wide"}, "transformers cannot read it"),
        ("upernet-swin", {"id2label": {"0": "a"}}, "transformers cannot read it"),
    ],
)
def test_configs_that_do_not_fit(name: str, fields: dict[str, Any], message: str, copied: Any) -> None:
    folder = copied(name)
    edit(folder / "config.json", **fields)
    assert message in refusal(lambda: load_model(str(folder), window=WINDOW))


def test_masks_that_are_still_drawn_at_random_are_refused(copied: Any) -> None:
    folder = copied("eomt")
    state = load_file(folder / "model.safetensors")
    state["attn_mask_probs"] = torch.tensor([0.0, 0.25])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "0.25" in refusal(lambda: load_model(str(folder), window=WINDOW))


def test_masks_that_always_restrict_are_computed(copied: Any) -> None:
    """A checkpoint whose annealing never began: every query sees what its mask leaves."""
    folder = copied("eomt")
    state = load_file(folder / "model.safetensors")
    state["attn_mask_probs"] = torch.ones(2)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model = transformers().EomtForUniversalSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        got = load_model(str(folder), window=WINDOW).module(PICTURE)
    assert (got - own("eomt", model, PICTURE, folder)).abs().max() < TOLERANCE


def test_oneformer_needs_its_tokenizer(copied: Any) -> None:
    folder = copied("oneformer")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    assert "tokenizer" in refusal(lambda: load_model(str(folder), window=WINDOW))


def test_no_code_of_a_folder_is_run(copied: Any, tmp_path: Path) -> None:
    folder, target = copied("upernet-swin"), tmp_path / "owned"
    (folder / "own.py").write_text(f"open({str(target)!r}, 'w').close()\n")
    edit(folder / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForSemanticSegmentation": "own.Net"})
    load_model(str(folder), window=WINDOW)
    assert not target.exists()
