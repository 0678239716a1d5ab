"""Loaders take what other people's code writes, tensor by tensor, and nothing less.

The lists come from that code (each says where from), not from this project's reading of it.  What the loaded networks
compute is compared in tests/pipeline/models and in test_setr_layouts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoints import LoadedModel, load_model
from tests.pipeline.checkpoints.golden import KEYS, LISTS, hollow_state, listed, random_state
from tests.pipeline.checkpoints.published import State, refusal, save

SEGFORMERS = [name for name in LISTS if name.startswith("segformer")]
SETRS = [name for name in LISTS if name.startswith("setr")]
SIDES = {"mmseg0": 512, "mmseg1": 512, "fudan": 768}
CONFIG = {"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"]}

# Tensors that inference never reads, by what published heads are made of: of base classes, and for training only.
UNUSED = ("auxiliary_head.", "num_batches_tracked")
UNUSED_IN = {
    "segformer_b0_nvlabs": ("decode_head.conv_seg.",),
    "setr_naive_fudan": ("decode_head.conv_seg.",),
    "setr_pup_fudan": ("decode_head.conv_seg.",),
    "setr_mla_fudan": ("decode_head.conv_seg.", "backbone.cls_token"),
    "setr_mla_mmseg0": ("backbone.cls_token",),
    "setr_mla_mmseg1": ("backbone.cls_token",),
}
# Without this one a file of 0.x is one of 1.x.
MAY_LACK = {f"setr_{decoder}_mmseg0": {"backbone.patch_embed.projection.bias"} for decoder in ("naive", "pup", "mla")}


def load(name: str, state: State, folder: Path) -> LoadedModel:
    """As a user would, from a file or folder; SETR for the windows that it was trained on."""
    if "huggingface" not in name:
        side = SIDES.get(name.rsplit("_", 1)[1], 512)
        return load_model(save(folder / "model.pth", state), window=(side, side))
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "model.safetensors")
    labels = {str(index): f"class {index}" for index in range(150)}
    (folder / "config.json").write_text(json.dumps({**CONFIG, "id2label": labels}))
    return load_model(str(folder))


def used(name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    unused = (*UNUSED, *UNUSED_IN.get(name, ()))
    return {key: what for key, what in listed(name).items() if not key.startswith(unused) and not key.endswith(unused)}


@pytest.mark.parametrize("name", LISTS)
def test_lists_say_where_they_come_from(name: str) -> None:
    lines = (KEYS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    comment = "\n".join(line for line in lines if line.startswith("#"))
    assert re.search(r"transformers 5|mmsegmentation (0\.30|1\.2)|commit", comment)
    assert len(listed(name)) > 190


@pytest.mark.parametrize("name", SEGFORMERS)
def test_published_segformer_loads(name: str, tmp_path: Path) -> None:
    state = random_state(name)
    loaded = load(name, state, tmp_path)
    assert (loaded.spec.architecture, loaded.spec.variant) == ("segformer", "b0")
    assert len(loaded.spec.classes) == 150
    arrived = [value for value in loaded.module.state_dict().values() if value.is_floating_point()]
    assert sum(value.numel() for value in arrived) == sum(state[key].numel() for key in used(name))
    # Every value arrives: the sum of the squares does not depend on names, order or packing.
    squares = sum(float(value.double().square().sum()) for value in arrived)
    assert squares == pytest.approx(sum(float(state[key].double().square().sum()) for key in used(name)), rel=1e-12)


def test_published_names_of_one_network_give_one_network(tmp_path: Path) -> None:
    """The hub's names and those in memory, of the same parameters in the same order."""
    state = random_state("segformer_b0_huggingface_memory")
    folders = [tmp_path / "memory", tmp_path / "hub"]
    for folder in folders:
        folder.mkdir()
    theirs = load("segformer_b0_huggingface_memory", state, folders[0]).module.state_dict()
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=150)
    model = transformers.SegformerForSemanticSegmentation(config)
    model.load_state_dict(state)
    model.save_pretrained(folders[1])
    ours = load_model(str(folders[1])).module.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)


@pytest.mark.parametrize("name", SETRS)
def test_published_setr_loads(name: str, tmp_path: Path) -> None:
    loaded = load(name, hollow_state(name), tmp_path)
    decoder, layout = name.split("_")[1:]
    assert (loaded.spec.architecture, loaded.spec.variant) == ("setr", f"{decoder}-large")
    assert len(loaded.spec.classes) == (19 if layout == "fudan" else 150)
    ours = sum(p.numel() for p in loaded.module.state_dict().values() if p.is_floating_point())
    theirs = sum(torch.Size(shape).numel() for shape, _ in used(name).values())
    embed_bias = 1024 if layout == "mmseg1" else 0  # zeros that the file does not have
    position = 1024 if decoder == "mla" else 0  # of the class token, which goes with it
    assert ours == theirs + embed_bias - position


def test_a_patch_embedding_without_a_bias_has_none(tmp_path: Path) -> None:
    module = load("setr_naive_mmseg1", hollow_state("setr_naive_mmseg1"), tmp_path).module
    assert not module.get_parameter("encoder.embed.bias").any()


def shallow(name: str) -> State:
    """As published, but for all blocks of a ViT after the fourth, which are like the first four."""
    later = re.compile(r"backbone\.(blocks|layers)\.([4-9]|\d\d)\.")
    return {key: tensor for key, tensor in hollow_state(name).items() if name in SEGFORMERS or not later.match(key)}


@pytest.mark.parametrize("name", LISTS)
def test_each_tensor_is_needed(name: str, tmp_path: Path) -> None:
    """One missing, renamed, or too long: its published name is in the message."""
    state = shallow(name)
    keys = sorted((state.keys() & used(name).keys()) - MAY_LACK.get(name, set()))
    for index, key in enumerate(keys[:: 11 if name in SEGFORMERS else 5]):
        damaged = dict(state)
        tensor = damaged.pop(key)
        # A matrix may be what tells a width; then the others are those that do not fit.
        kind = ("missing", "renamed", "misshapen")[index % 3] if tensor.ndim == 1 else ("missing", "renamed")[index % 2]
        if kind == "renamed":
            damaged[f"{key}_old"] = tensor
        elif kind == "misshapen":
            damaged[key] = tensor[:1].expand(tensor.shape[0] + 3)
        message = refusal(lambda damaged=damaged: load(name, damaged, tmp_path))  # type: ignore[misc]
        assert key in message, (kind, message)


@pytest.mark.parametrize("name", [name for name in LISTS if "huggingface" not in name])
def test_heads_of_training_may_be_missing(name: str, tmp_path: Path) -> None:
    needed = {key: tensor for key, tensor in shallow(name).items() if key in used(name)}
    assert load(name, needed, tmp_path).spec.architecture in ("segformer", "setr")
