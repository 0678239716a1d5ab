"""Reading checkpoints: strictness, metadata, hostile and damaged files, and factories.  Parity is in test_segformer."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.errors import DeployError
from pipeline.checkpoints import LoadedModel, load_model
from pipeline.checkpoints.nvlabs import variant_of
from pipeline.checkpoints.registry import LAYOUTS
from pipeline.segformer import VARIANTS
from tests.pipeline.test_segformer import (
    CLASSES,
    TINY,
    huggingface_model,
    mmseg_state,
    nvlabs_state,
    picture,
    transformers,
    variant_config,
)

State = dict[str, Tensor]
NAMES = tuple("abcdefg")


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    return {"nvlabs": nvlabs_state(huggingface_model(**variant_config("b0"))), "mmseg": mmseg_state()}


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


def save(path: Path, state: object, meta: object = None) -> str:
    torch.save({"state_dict": state, "meta": meta}, path)
    return str(path)


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(DeployError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


# --- strictness ------------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype, states: dict[str, State], tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in states["mmseg"].items()}
    module = load_model(save(tmp_path / "half.pth", state)).module
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    loaded = module.get_parameter("head.classify.weight")
    assert torch.equal(loaded, state["decode_head.conv_seg.weight"].to(torch.float32))


def test_a_square_matrix_is_not_taken_for_another_kernel(states: dict[str, State], tmp_path: Path) -> None:
    """Only (O, I) and (O, I, 1, 1) stand for each other."""
    key = "backbone.layers.0.1.0.ffn.layers.0.weight"
    state = {**states["mmseg"], key: states["mmseg"][key].reshape(128, 32, 1)}
    assert f"{key}: got shape (128, 32, 1), expected (128, 32)" in refusal(
        lambda: load_model(save(tmp_path / "odd.pth", state))
    )


# --- which layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_told_apart(variant: str) -> None:
    dims, depths, _ = VARIANTS[variant]
    assert variant_of(dims, depths) == variant
    with pytest.raises(DeployError, match="expected MiT-B0 to B5"):
        variant_of(dims, (*depths[:3], 9))


def test_exactly_one_layout_matches(states: dict[str, State], tmp_path: Path) -> None:
    for state in states.values():
        assert sum(layout.matches(frozenset(state)) for layout in LAYOUTS) == 1
    both = states["nvlabs"] | states["mmseg"]
    message = refusal(lambda: load_model(save(tmp_path / "both.pth", both)))
    assert "NVlabs/SegFormer and mmsegmentation SegFormer" in message


def test_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    state = {"decode_head.weird": torch.zeros(1), "backbone.odd": torch.zeros(1)}
    message = refusal(lambda: load_model(save(tmp_path / "odd.pth", state)))
    assert "backbone.odd, decode_head.weird" in message
    for layout in LAYOUTS:
        assert layout.NAME in message


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_encoder_alone_is_told(prefix: str, states: dict[str, State], tmp_path: Path) -> None:
    encoder = {key: value for key, value in states["nvlabs"].items() if key.startswith("backbone.")}
    state = {key.replace("backbone.", prefix): value for key, value in encoder.items()}
    message = refusal(lambda: load_model(save(tmp_path / "mit_b0.pth", state)))
    assert "without a decode_head" in message
    assert "fine-tuned" in message


def test_huggingface_weights_alone_are_told(folder: Path) -> None:
    message = refusal(lambda: load_model(str(folder / "model.safetensors")))
    assert "expected the folder with their config.json" in message


# --- Hugging Face folders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "vit"}, "got model_type 'vit', expected 'segformer'"),
        ({"reshape_last_stage": False}, "reshape_last_stage: got False, expected True"),
        ({"num_channels": 4}, "num_channels: got 4, expected 3"),
        ({"hidden_act": "relu"}, "hidden_act: got 'relu', expected one of gelu"),
        ({"depths": [1, 1, 1]}, "depths: got 3 stages, expected num_encoder_blocks = 4"),
        ({"depths": "many"}, "depths: got 'many', expected a list of positive integers"),
        ({"strides": [4, 2, 2, 0.5]}, "strides: got"),
        ({"num_attention_heads": [3, 2, 5, 4]}, "expected divisors of hidden_sizes"),
        ({"hidden_sizes": [16, 32, 40, 80]}, "expected (80, 40, 3, 3)"),
        ({"id2label": {"0": "a", "1": "b"}}, "id2label: got 2 classes, expected 7"),
        ({"id2label": {str(i): "x" for i in (0, 1, 2, 3, 4, 5, 8)}}, "expected 0 to 6 without a gap"),
        ({"id2label": ["a"] * 7}, "id2label: got something else"),
        ({"palette": [[0, 0, 256]] * 7}, "outside 0..255"),
        ({"palette": [[0, 0, 0]] * 6}, "got 6 colours for 7 classes"),
    ],
)
def test_config_is_checked(fields: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / "config.json", **fields)
    assert message in refusal(lambda: load_model(str(folder)))


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
    assert "got SegformerForImageClassification without a decode_head" in message


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


# --- metadata of .pth files ------------------------------------------------------------------------------------------


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


# --- hostile and damaged files ---------------------------------------------------------------------------------------


class Payload:
    """Unpickling this with a full unpickler creates the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


class Foreign:
    """A class that only its own framework knows, as mmengine's HistoryBuffer."""


@pytest.mark.parametrize("place", ["meta", "tensor", "top", "folder"])
def test_code_in_a_pickle_is_never_run(place: str, folder: Path, states: dict[str, State], tmp_path: Path) -> None:
    target = tmp_path / "owned"
    path = tmp_path / "hostile.pth"
    payload = Payload(target)
    if place == "folder":
        (folder / "model.safetensors").unlink()
        path = folder / "pytorch_model.bin"
    content = {
        "meta": {"state_dict": states["mmseg"], "meta": payload},
        "tensor": {**states["mmseg"], "backbone.extra": payload},
    }.get(place, payload)
    torch.save(content, path)
    message = refusal(lambda: load_model(str(folder if place == "folder" else path)))
    assert re.search(r"would run \w+\.system, expected", message)
    assert not target.exists()
    # The same file does run under the full unpickler: the test is not vacuous.
    torch.load(path, weights_only=False)
    assert target.exists()


def test_bare_pickle_is_never_run(tmp_path: Path) -> None:
    target, path = tmp_path / "owned", tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(Payload(target)))
    refusal(lambda: load_model(str(path)))
    assert not target.exists()


def test_foreign_classes_in_meta_are_named(states: dict[str, State], tmp_path: Path) -> None:
    message = refusal(lambda: load_model(save(tmp_path / "a.pth", states["mmseg"], {"hook": Foreign()})))
    assert "tests.pipeline.test_checkpoints.Foreign" in message
    assert 'torch.save({"state_dict": ckpt["state_dict"]}, ...)' in message


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_torch_files_are_told(legacy: bool, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "cut.pth"
    content = {"state_dict": {"backbone.a": torch.arange(4096.0)}}
    torch.save(content, whole, _use_new_zipfile_serialization=not legacy)
    data = whole.read_bytes()
    for length in (*range(1, 200, 7), *range(200, len(data), 511), len(data) - 1):
        path.write_bytes(data[:length])
        assert str(path) in refusal(lambda: load_model(str(path)))


def test_flipped_bytes_never_leave_a_traceback(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "flipped.pth"
    torch.save({"state_dict": {"backbone.a": torch.arange(64.0)}}, whole)
    data = whole.read_bytes()
    random = torch.Generator().manual_seed(4)
    for _ in range(300):
        damaged = bytearray(data)
        for position in torch.randint(len(data), (3,), generator=random).tolist():
            damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        refusal(lambda: load_model(str(path)))  # undamaged, its layout is unknown, which is a DeployError too


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "got an empty file"),
        ("a.safetensors", b"", "got an empty file"),
        ("a.pth", b"<html><body>404</body></html>", "not a torch checkpoint"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "check the download"),
        ("a.safetensors", b"hello, this is text", "got a damaged file"),
        ("a.safetensors", b"\xff" * 64, "got a damaged file"),
    ],
)
def test_files_that_are_no_checkpoint(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refusal(lambda: load_model(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "got an empty one, expected a state dict"),
        ([torch.zeros(1)], "got a list, expected a state dict"),
        (torch.zeros(1), "got a Tensor, expected a state dict"),
        ({"epoch": 3}, "got int at 'epoch', expected tensors by name"),
        ({"model": {"a": torch.zeros(1)}}, "got dict at 'model'"),
        ({3: torch.zeros(1)}, "got Tensor at 3"),
    ],
)
def test_torch_files_without_a_state_dict(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert message in refusal(lambda: load_model(str(tmp_path / "a.pth")))


def test_sources_that_are_nothing(tmp_path: Path) -> None:
    assert "got no such file" in refusal(lambda: load_model(str(tmp_path / "absent.pth")))
    assert "check the path" in refusal(lambda: load_model("segformer-b0"))
    message = refusal(lambda: load_model("demo", weights=tmp_path / "w.pth"))
    assert "expected a Python factory" in message


# --- factories -------------------------------------------------------------------------------------------------------

FACTORIES = """
from collections import namedtuple
import torch
from torch import nn
from engines.spec import ModelSpec

Output = namedtuple("Output", ["loss", "logits"])

class Net(nn.Module):
    def __init__(self, wrap=lambda x: x, classes=3, stride=4):
        super().__init__()
        self.wrap = wrap
        self.conv = nn.Conv2d(3, classes, stride, stride)
        self.register_buffer("steps", torch.tensor(5))
    def forward(self, x):
        return self.wrap(self.conv(x))

def plain(): return Net()
def first(): return Net(lambda x: (x, x.sum()))
def listed(): return Net(lambda x: [None, x])
def named(): return Net(lambda x: Output(x.sum(), x))
def logits(): return Net(lambda x: {"logits": x, "aux": x * 2})
def out(): return Net(lambda x: {"aux": x * 2, "out": x})
def silent(): return Net(lambda x: {"features": x})
def flat(): return Net(lambda x: x.flatten(1))
def ragged(): return Net(lambda x: x[:, :, 1:])
def bigger(): return Net(stride=1, wrap=lambda x: nn.functional.interpolate(x, scale_factor=2.0))
def many(): return Net(classes=256, stride=8)
def broken(): return Net(lambda x: x @ x.new_zeros(3, 3))
def needy(size): return Net()
def number(): return 3
def bug(): raise ZeroDivisionError("mine")
def described(names): return Net(), ModelSpec("net", "v1", names, ((0, 0, 0),) * len(names), mean=(1, 2, 3))
def with_spec(): return described(("a", "b", "c"))
def wrong_spec(): return described(("a", "b"))
instance = Net()
class Outer:
    @staticmethod
    def make(): return Net()
"""
WINDOW = (64, 96)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LoadedModel]]:
    """Load a function of a module that lies in the current folder, which is not on sys.path."""
    (tmp_path / "users_models.py").write_text(FACTORIES)
    (tmp_path / "users_broken.py").write_text("import a_package_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load(function: str, module: str = "users_models", **options: Any) -> LoadedModel:
        return load_model(f"{module}:{function}", window=WINDOW, **options)

    yield load
    sys.modules.pop("users_models", None)


@pytest.mark.parametrize("function", ["plain", "first", "listed", "named", "logits", "out", "Outer.make"])
def test_factory_outputs(function: str, make: Callable[..., LoadedModel]) -> None:
    loaded = make(function)
    image = picture(*WINDOW)
    net = sys.modules["users_models"].Net()
    net.load_state_dict(loaded.module.inner.state_dict())
    assert torch.equal(loaded.module(image), net(image))
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    spec = loaded.spec
    assert (len(spec.classes), spec.logits_stride, spec.source) == (3, 4, f"factory users_models:{function}")


def test_factory_spec_is_kept(make: Callable[..., LoadedModel]) -> None:
    spec = make("with_spec").spec
    assert (spec.architecture, spec.classes, spec.mean) == ("net", ("a", "b", "c"), (1, 2, 3))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", "has no attribute 'absent'"),
        ("needy", "missing a required argument: 'size'; expected a function that needs no arguments"),
        ("instance", "got a Net, expected a function"),
        ("Output._fields", "got a tuple of str, str, expected a function"),
        ("number", "got an int, expected an nn.Module or (nn.Module, ModelSpec)"),
        ("silent", "got a dict from the module, expected a tensor of logits"),
        ("flat", "got logits (1, 1152) for a 64x96 window"),
        ("ragged", "got logits (1, 3, 15, 24) for a 64x96 window"),
        ("bigger", "got logits (1, 3, 128, 192)"),
        ("many", "with 1 <= K <= 255"),
        ("broken", "choose another with --tile"),
        ("wrong_spec", "got a ModelSpec of 2 classes at 1/4, expected 3 at 1/4"),
    ],
)
def test_factories_that_do_not_fit(function: str, message: str, make: Callable[..., LoadedModel]) -> None:
    assert message in refusal(lambda: make(function))


def test_factory_that_cannot_be_imported(make: Callable[..., LoadedModel]) -> None:
    assert "No module named 'nowhere'" in refusal(lambda: make("f", "nowhere.at_all"))
    assert "No module named 'a_package_nobody_has'" in refusal(lambda: make("f", "users_broken"))
    with pytest.raises(ZeroDivisionError, match="mine"):
        make("bug")


def test_factory_weights_are_strict(make: Callable[..., LoadedModel], tmp_path: Path) -> None:
    make("plain")
    state = {key: torch.full_like(value, 2) for key, value in sys.modules["users_models"].Net().state_dict().items()}
    path = tmp_path / "w.pth"
    save(path, state)
    loaded = make("plain", weights=path)
    assert {int(value.unique()) for value in loaded.module.state_dict().values()} == {2}
    assert loaded.spec.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    save(path, {key: value for key, value in state.items() if key != "conv.bias"})
    assert "got no tensor for conv.bias" in refusal(lambda: make("plain", weights=path))
    save(path, {**state, "other": torch.zeros(1)})
    assert "got unknown other" in refusal(lambda: make("plain", weights=path))
    save(path, {**state, "conv.bias": torch.zeros(4)})
    assert re.search(r"conv\.bias: got shape \(4,\), expected \(3,\)", refusal(lambda: make("plain", weights=path)))
    save(path, {**state, "conv.bias": torch.full((3,), float("nan"))})
    assert "conv.bias: got 3 of 3 values NaN" in refusal(lambda: make("plain", weights=path))
