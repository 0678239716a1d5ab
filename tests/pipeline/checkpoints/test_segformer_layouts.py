"""State dicts in a file: which layout they have, how strictly they are read, and the metadata beside them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoints import load_model
from pipeline.checkpoints.nvlabs import variant_of
from pipeline.checkpoints.registry import LAYOUTS
from pipeline.models.segformer import VARIANTS
from tests.pipeline.checkpoints.published import (
    CLASSES,
    State,
    huggingface_model,
    mmseg_state,
    nvlabs_state,
    refusal,
    save,
    variant_config,
)

NAMES = tuple("abcdefg")


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    return {"nvlabs": nvlabs_state(huggingface_model(**variant_config("b0"))), "mmseg": mmseg_state()}


# In each layout: a packed tensor, a norm, a BatchNorm statistic, the classifier.
VICTIMS = [
    ("nvlabs", "backbone.block2.1.attn.kv.weight"),
    ("nvlabs", "backbone.patch_embed3.norm.bias"),
    ("nvlabs", "decode_head.linear_fuse.bn.running_var"),
    ("nvlabs", "decode_head.linear_pred.bias"),
    ("mmseg", "backbone.layers.2.1.0.attn.attn.in_proj_bias"),
    ("mmseg", "backbone.layers.0.1.1.ffn.layers.1.weight"),
    ("mmseg", "decode_head.convs.3.bn.running_mean"),
    ("mmseg", "decode_head.conv_seg.bias"),
]


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "inf", "int"])
@pytest.mark.parametrize(("layout", "key"), VICTIMS)
def test_damaged_tensor_is_named(layout: str, key: str, damage: str, states: dict[str, State], tmp_path: Path) -> None:
    state = dict(states[layout])
    tensor = state.pop(key)
    if damage == "shape":
        state[key] = torch.cat([tensor, tensor[:1]])
    elif damage == "int":
        state[key] = tensor.to(torch.int8)
    elif damage != "missing":
        state[key] = tensor.clone()
        state[key].view(-1)[-1] = float(damage)
    assert key in refusal(lambda: load_model(save(tmp_path / "damaged.pth", state)))


@pytest.mark.parametrize("layout", ["nvlabs", "mmseg"])
def test_left_over_tensor_is_named(layout: str, states: dict[str, State], tmp_path: Path) -> None:
    state = {**states[layout], "backbone.extra.weight": torch.zeros(2)}
    assert "backbone.extra.weight" in refusal(lambda: load_model(save(tmp_path / "more.pth", state)))


@pytest.mark.parametrize("layout", ["nvlabs", "mmseg"])
def test_what_inference_never_uses_may_be_there(layout: str, states: dict[str, State], tmp_path: Path) -> None:
    state = {**states[layout], "auxiliary_head.convs.0.conv.weight": torch.full((2,), float("nan"))}
    assert load_model(save(tmp_path / "aux.pth", state)).spec.variant == "b0"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype, states: dict[str, State], tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in states["mmseg"].items()}
    module = load_model(save(tmp_path / "half.pth", state)).module
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    loaded = module.get_parameter("head.classify.weight")
    assert torch.equal(loaded, state["decode_head.conv_seg.weight"].to(torch.float32))


@pytest.mark.parametrize(
    ("layer", "got", "expected"), [(0, (128, 32, 1), (128, 32)), (1, (128, 1, 1, 1), (128, 1, 3, 3))]
)
def test_only_a_matrix_and_its_1x1_kernel_are_alike(
    layer: int, got: tuple[int, ...], expected: tuple[int, ...], states: dict[str, State], tmp_path: Path
) -> None:
    key = f"backbone.layers.0.1.0.ffn.layers.{layer}.weight"
    state = {**states["mmseg"], key: torch.ones(got)}
    message = refusal(lambda: load_model(save(tmp_path / "odd.pth", state)))
    assert f"{key}: got shape {got}, expected {expected}" in message


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_told_apart(variant: str) -> None:
    dims, depths, _ = VARIANTS[variant]
    assert variant_of(dims, depths) == variant
    assert variant_of(dims, (*depths[:3], 9)) == "custom"


def test_exactly_one_layout_matches(states: dict[str, State], tmp_path: Path) -> None:
    for state in states.values():
        assert sum(layout.matches(frozenset(state)) for layout in LAYOUTS) == 1
    both = states["nvlabs"] | states["mmseg"]
    message = refusal(lambda: load_model(save(tmp_path / "both.pth", both)))
    assert "NVlabs/SegFormer and mmsegmentation SegFormer" in message


def test_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    state = {"decode_head.weird": torch.zeros(1), "backbone.odd": torch.zeros(1)}
    message = refusal(lambda: load_model(save(tmp_path / "odd.pth", state)))
    assert "left over backbone.odd" in message
    for layout in LAYOUTS:
        assert layout.NAME in message


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_encoder_alone_is_told(prefix: str, states: dict[str, State], tmp_path: Path) -> None:
    encoder = {key: value for key, value in states["nvlabs"].items() if key.startswith("backbone.")}
    state = {key.replace("backbone.", prefix): value for key, value in encoder.items()}
    message = refusal(lambda: load_model(save(tmp_path / "mit_b0.pth", state)))
    assert "without a decode_head" in message
    assert "fine-tuned" in message


@pytest.mark.parametrize("generation", ["0.x", "1.x"])
def test_meta_of_both_generations(generation: str, states: dict[str, State], tmp_path: Path) -> None:
    colours = [[i, i, 9] for i in range(CLASSES)]
    meta: dict[str, Any] = {"CLASSES": NAMES, "PALETTE": colours, "epoch": 3}
    if generation == "1.x":
        meta = {"dataset_meta": {"classes": NAMES, "palette": colours, "reduce_zero_label": True}}
    path = tmp_path / "meta.pth"
    spec = load_model(save(path, states["nvlabs"], meta)).spec
    assert spec.classes == NAMES
    assert spec.palette[5] == (5, 5, 9)
    assert spec.reduce_zero_label is (generation == "1.x")
    assert (spec.mean, spec.std) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert (spec.channel_order, spec.logits_stride) == ("RGB", 4)
    assert spec.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_meta_of_another_training_is_refused(states: dict[str, State], tmp_path: Path) -> None:
    message = refusal(lambda: load_model(save(tmp_path / "a.pth", states["mmseg"], {"CLASSES": ("a", "b")})))
    assert "got 2 class names, expected 7" in message
    message = refusal(lambda: load_model(save(tmp_path / "b.pth", states["mmseg"], {"CLASSES": "cityscapes"})))
    assert "got str as classes" in message


@pytest.mark.parametrize(("count", "reduced"), [(19, False), (150, True), (CLASSES, False)])
def test_bare_state_dict_gets_default_classes(
    count: int, reduced: bool, states: dict[str, State], tmp_path: Path
) -> None:
    path = tmp_path / "bare.safetensors"
    state = {key: tensor.contiguous() for key, tensor in states["nvlabs"].items()}
    state["decode_head.linear_pred.weight"] = torch.ones(count, 256, 1, 1)
    state["decode_head.linear_pred.bias"] = torch.ones(count)
    save_file(state, path)
    spec = load_model(str(path)).spec
    assert len(spec.classes) == len(spec.palette) == count
    assert spec.reduce_zero_label is reduced
