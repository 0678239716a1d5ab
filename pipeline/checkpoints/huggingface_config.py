"""The JSON files of a Hugging Face SegFormer: dimensions, class names and preprocessing, checked field by field.

transformers builds every LayerNorm with PyTorch's eps of 1e-5 and never reads ``layer_norm_eps`` of the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.errors import DeployError
from engines.spec import IGNORE_LABEL, RGB
from pipeline.models.segformer import SegFormerConfig

NAMING = ("id2label", "palette")  # the fields that name and paint classes

_EPS = 1e-5
_GELU = {
    "gelu": "none",
    "gelu_python": "none",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
}
# Far above any SegFormer: a config must not be able to ask for more than the weights beside it could hold.
_MOST = 1 << 16
_MOST_BLOCKS = 1000
# What transformers assumes for a field that config.json leaves out.
_DEFAULTS: dict[str, list[int]] = {
    "hidden_sizes": [32, 64, 160, 256],
    "depths": [2, 2, 2, 2],
    "num_attention_heads": [1, 2, 5, 8],
    "sr_ratios": [8, 4, 2, 1],
    "mlp_ratios": [4, 4, 4, 4],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
}


def config_from_json(config: Mapping[str, Any], classes: int) -> SegFormerConfig:
    """The dimensions in a config.json.  Raises DeployError."""
    sizes = {name: _integers(config, name) for name in _DEFAULTS}
    stages = _integer(config, "num_encoder_blocks", 4)
    for name, values in sizes.items():
        if len(values) != stages:
            raise DeployError(f"config.json: {name}: got {len(values)} stages, expected num_encoder_blocks = {stages}")
    for field, expected in (("num_channels", 3), ("reshape_last_stage", True)):
        got = config.get(field, expected)
        if got != expected:
            raise DeployError(
                f"config.json: {field}: got {got!r}, expected {expected!r}; no published SegFormer differs"
            )
    if sum(sizes["depths"]) > _MOST_BLOCKS:
        raise DeployError(f"config.json: depths: got {list(sizes['depths'])}, expected {_MOST_BLOCKS} blocks at most")
    if any(dim % heads for dim, heads in zip(sizes["hidden_sizes"], sizes["num_attention_heads"], strict=True)):
        raise DeployError(
            f"config.json: num_attention_heads: got {sizes['num_attention_heads']}, expected divisors of "
            f"hidden_sizes {sizes['hidden_sizes']}"
        )
    act = config.get("hidden_act", "gelu")
    if not isinstance(act, str) or act not in _GELU:
        raise DeployError(f"config.json: hidden_act: got {act!r}, expected one of {', '.join(_GELU)}")
    return SegFormerConfig(
        classes=classes,
        dims=sizes["hidden_sizes"],
        depths=sizes["depths"],
        heads=sizes["num_attention_heads"],
        reductions=sizes["sr_ratios"],
        mlp_ratios=sizes["mlp_ratios"],
        patch_sizes=sizes["patch_sizes"],
        strides=sizes["strides"],
        decoder_dim=_integer(config, "decoder_hidden_size", 256),
        gelu=_GELU[act],
        eps_embed=_EPS,
        eps_reduce=_EPS,
        eps_block=_EPS,
        eps_stage=_EPS,
    )


def label_fields(config: Mapping[str, Any], classes: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``classes`` (if named), ``palette`` (if given) and ``ignore_index`` of a `ModelSpec`; remarks.

    A channel that id2label skips is called ``class N``.  Raises DeployError.
    """
    fields: dict[str, Any] = {"ignore_index": _ignore_index(config)}
    remarks: tuple[str, ...] = ()
    names = config.get("id2label")
    if names is not None:
        by_index = _class_names(names)
        nameless = [index for index in range(classes) if index not in by_index]
        last = max(by_index, default=0)
        if last >= classes or (nameless and last != classes - 1):
            raise DeployError(
                f"config.json: id2label: got {len(by_index)} classes up to {last}, expected {classes}, "
                "the rows of the classifier; the weights belong to another config, name them with --classes"
            )
        fields["classes"] = tuple(by_index.get(index, f"class {index}") for index in range(classes))
        if nameless:
            remarks = (f"id2label skips {', '.join(map(str, nameless))}: called class {nameless[0]}, ...",)
    if config.get("palette") is not None:
        fields["palette"] = _palette(config["palette"])
    return fields, remarks


def _ignore_index(config: Mapping[str, Any]) -> int:
    """Of labels on disk, which are bytes: a negative one, as PyTorch's own -100, stands in none, and 255 is left."""
    value = config.get("semantic_loss_ignore_index", IGNORE_LABEL)
    if isinstance(value, int) and -(2**31) <= value < 0:
        return IGNORE_LABEL
    return _integer(config, "semantic_loss_ignore_index", IGNORE_LABEL, 0)


def _integers(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    values = config.get(name, _DEFAULTS[name])
    if not isinstance(values, list) or not all(_is_count(value) for value in values):
        raise DeployError(f"config.json: {name}: got {values!r}, expected a list of integers, 1 to {_MOST}")
    return tuple(int(value) for value in values)


def _integer(config: Mapping[str, Any], name: str, default: int, lowest: int = 1) -> int:
    value = config.get(name, default)
    if not _is_count(value, lowest):
        raise DeployError(f"config.json: {name}: got {value!r}, expected an integer, {lowest} to {_MOST}")
    return int(value)


def _is_count(value: Any, lowest: int = 1) -> bool:
    # 4.0 counts: some exporters write mlp_ratios as floats.
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and lowest <= value <= _MOST and value % 1 == 0
    )


def _class_names(names: Any) -> dict[int, str]:
    if not isinstance(names, dict) or not all(
        isinstance(key, str) and key.isascii() and key.isdigit() for key in names
    ):
        raise DeployError("config.json: id2label: got something else, expected an object from '0', '1', ... to names")
    by_index = {int(key): str(name) for key, name in names.items()}
    if len(by_index) != len(names):
        raise DeployError(
            f"config.json: id2label: got {len(names)} keys for {len(by_index)} ids, expected one for each"
        )
    return by_index


def _palette(colours: Any) -> tuple[RGB, ...]:
    try:
        palette = tuple((int(r), int(g), int(b)) for r, g, b in colours)
    except (TypeError, ValueError, OverflowError) as error:
        raise DeployError(f"config.json: palette: got {error}, expected [red, green, blue] for each class") from error
    if any(not 0 <= value <= 255 for colour in palette for value in colour):
        raise DeployError("config.json: palette: got a value outside 0..255, expected [red, green, blue] of bytes")
    return palette
