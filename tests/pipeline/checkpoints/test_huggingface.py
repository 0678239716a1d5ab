"""Hugging Face folders: every field of the JSON files, incomplete folders, shards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoints import load_model
from tests.pipeline.checkpoints.published import (
    CLASSES,
    TINY,
    huggingface_model,
    picture,
    refusal,
    transformers,
    variant_config,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("huggingface")
    huggingface_model(**TINY).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A small Hugging Face folder that the test may change."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in original.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("damage", ["missing", "more", "shape", "nan"])
def test_damaged_huggingface_tensor_is_named(damage: str, folder: Path) -> None:
    key = "segformer.encoder.block.1.0.attention.self.sr.weight"
    state = load_file(folder / "model.safetensors")
    if damage == "missing":
        del state[key]
    elif damage == "more":
        key = "segformer.encoder.block.1.7.layer_norm_1.weight"
        state[key] = torch.ones(32)
    elif damage == "shape":
        state[key] = state[key][:-1].contiguous()
    else:
        state[key][0, 0, 0, 0] = float("nan")
    save_file(state, folder / "model.safetensors")
    assert key in refusal(lambda: load_model(str(folder)))


def test_a_file_of_a_huggingface_folder_is_told(folder: Path) -> None:
    message = refusal(lambda: load_model(str(folder / "model.safetensors")))
    assert "with a config.json beside them; pass the folder" in message


@pytest.mark.parametrize("hub", [False, True], ids=["in memory", "as on the hub"])
@pytest.mark.parametrize("config", [variant_config("b0"), {**variant_config("b1"), "mlp_ratios": [2, 2, 3, 4]}])
def test_weights_alone_are_computed_as_transformers_does(hub: bool, config: dict[str, Any], tmp_path: Path) -> None:
    """Of a training of one's own, in Lightning: names and tensors, and no config.json."""
    model = huggingface_model(**{**config, "depths": [1, 2, 1, 1], "sr_ratios": [4, 4, 2, 1]})
    model.save_pretrained(tmp_path / "folder")
    state = load_file(tmp_path / "folder" / "model.safetensors") if hub else model.state_dict()
    wrapped = {"state_dict": {f"model.{key}": value for key, value in state.items()}, "hyper_parameters": {"lr": 1e-4}}
    torch.save(wrapped, tmp_path / "last.ckpt")
    loaded = load_model(str(tmp_path / "last.ckpt"))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(picture()), model(picture()).logits, rtol=1e-4, atol=1e-4)
    assert any("no config.json: assumed" in line for line in loaded.remarks)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "vit"}, "got model_type 'vit', expected one of segformer"),
        ({"reshape_last_stage": False}, "reshape_last_stage: got False, expected True"),
        ({"num_channels": 4}, "num_channels: got 4, expected 3"),
        ({"hidden_act": "relu"}, "hidden_act: got 'relu', expected one of gelu"),
        ({"depths": [1, 1, 1]}, "depths: got 3 stages, expected num_encoder_blocks = 4"),
        ({"depths": "many"}, "depths: got 'many', expected a list of integers"),
        ({"depths": [1, 1, 1, 65536]}, "expected 1000 blocks at most"),
        ({"decoder_hidden_size": 10**12}, "decoder_hidden_size: got 1000000000000"),
        ({"hidden_sizes": [16, 32, 40, 1e300]}, "hidden_sizes: got"),
        ({"strides": [4, 2, 2, 0.5]}, "strides: got"),
        ({"num_attention_heads": [3, 2, 5, 4]}, "expected divisors of hidden_sizes"),
        ({"hidden_sizes": [16, 32, 40, 80]}, "expected (80, 40, 3, 3)"),
        ({"id2label": {"0": "a", "1": "b"}}, "id2label: got 2 classes up to 1, expected 7"),
        ({"id2label": {str(i): "x" for i in (0, 1, 2, 3, 4, 5, 8)}}, "got 7 classes up to 8, expected 7"),
        ({"id2label": ["a"] * 7}, "id2label: got something else"),
        ({"palette": [[0, 0, 256]] * 7}, "outside 0..255"),
        ({"palette": [[0, 0, 0]] * 6}, "got 6 colours for 7 classes"),
    ],
)
def test_config_is_checked(fields: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / "config.json", **fields)
    assert message in refusal(lambda: load_model(str(folder)))


def test_ids_with_gaps_and_names_that_the_user_overrides(folder: Path) -> None:
    names = {str(index): f"thing {index}" for index in range(CLASSES) if index not in (2, 4)}
    edit(folder / "config.json", id2label=names, semantic_loss_ignore_index=-100)
    loaded = load_model(str(folder))
    assert loaded.spec.classes[1:5] == ("thing 1", "class 2", "thing 3", "class 4")
    assert loaded.spec.ignore_index == 255
    assert any("id2label skips 2, 4" in remark for remark in loaded.remarks)
    edit(folder / "config.json", id2label={"0": "a", "1": "b"}, palette=[[0, 0, 0]])
    assert "name them with --classes" in refusal(lambda: load_model(str(folder)))
    assert len(load_model(str(folder), named=True).spec.classes) == CLASSES


def test_labels_are_sorted_as_numbers(original: Path, tmp_path: Path) -> None:
    labels = {index: f"class {index}" for index in range(12)}
    library = transformers()
    config = library.SegformerConfig(id2label=labels, depths=[1, 1, 1, 1], **TINY)
    library.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", id2label={str(index): labels[index] for index in sorted(labels, key=str)})
    assert load_model(str(tmp_path)).spec.classes == tuple(labels.values())


def test_preprocessing_is_put_on_the_pixel_scale(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text("{}")
    spec = load_model(str(folder)).spec
    assert (spec.mean, spec.std) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert spec.reduce_zero_label is False
    edit(path, image_mean=[1, 2, 3], image_std=0.5, rescale_factor=0.5, do_reduce_labels=True)
    spec = load_model(str(folder)).spec
    assert (spec.mean, spec.std, spec.reduce_zero_label) == ((2, 4, 6), (1, 1, 1), True)
    edit(path, do_rescale=False)
    assert load_model(str(folder)).spec.mean == (1, 2, 3)
    edit(path, do_normalize=False, do_rescale=True)
    spec = load_model(str(folder)).spec
    assert (spec.mean, spec.std) == ((0, 0, 0), (2, 2, 2))
    edit(path, image_mean=[1, 2], do_normalize=True)
    assert "expected image_mean, image_std of 3" in refusal(lambda: load_model(str(folder)))


def test_palette_ignore_index_and_digest_are_read(folder: Path) -> None:
    colours = [[i, i + 1, i + 2] for i in range(CLASSES)]
    edit(folder / "config.json", palette=colours, semantic_loss_ignore_index=0)
    spec = load_model(str(folder)).spec
    assert spec.palette[3] == (3, 4, 5)
    assert spec.ignore_index == 0
    assert spec.source == "Hugging Face SegFormer"
    assert spec.source_sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_encoder_only_folder_is_told(tmp_path: Path) -> None:
    library = transformers()
    config = library.SegformerConfig(depths=[1, 1, 1, 1], **TINY)
    library.SegformerForImageClassification(config).save_pretrained(tmp_path)
    message = refusal(lambda: load_model(str(tmp_path)))
    assert "got the weights of an encoder without a decode_head" in message


def test_incomplete_folders_are_told(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "got a damaged file" in refusal(lambda: load_model(str(folder)))
    weights.unlink()
    assert "without weights" in refusal(lambda: load_model(str(folder)))
    (folder / "config.json").write_text("{")
    assert "expected readable JSON" in refusal(lambda: load_model(str(folder)))
    (folder / "config.json").write_text("[1]")
    assert "got a JSON list" in refusal(lambda: load_model(str(folder)))
    (folder / "config.json").unlink()
    assert "without config.json" in refusal(lambda: load_model(str(folder)))


def test_shards_must_be_what_the_index_says(original: Path, folder: Path) -> None:
    single = folder / "model.safetensors"
    state = load_file(single)
    outside = folder.parent / "outside.safetensors"
    single.rename(outside)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "../outside.safetensors")}))
    assert "expected a file name without folders" in refusal(lambda: load_model(str(folder)))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "a.safetensors")}))
    assert "got no such file" in refusal(lambda: load_model(str(folder)))
    save_file({**state, "stray": torch.zeros(1)}, folder / "a.safetensors")
    assert "(stray)" in refusal(lambda: load_model(str(folder)))
    index.write_text(json.dumps({"weight_map": {}}))
    assert "got no weight_map" in refusal(lambda: load_model(str(folder)))
