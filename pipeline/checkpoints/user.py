"""A user's own network: a Python function that returns it, named as ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.errors import DeployError
from engines.spec import THRESHOLD, ModelSpec
from pipeline.checkpoints.common import LoadedModel
from pipeline.checkpoints.files import files_sha256, fill, read_weights
from pipeline.checkpoints.probe import channels_of, measure, passed_on, probe
from pipeline.checkpoints.torch_endings import cut_module

_OUTPUTS = ("logits", "out")  # of Hugging Face and torchvision


class LogitsOnly(nn.Module):
    """Calls `inner` and returns nothing but its logits, whatever container it puts them in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return pick_logits(self.inner(x))


def load_factory(
    source: str, weights: Path | None, window: tuple[int, int], arguments: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Call the factory, load `weights` strictly if given, and measure the logits on one window of noise.

    The function returns an nn.Module, or (nn.Module, ModelSpec).  Without a ModelSpec the module's own attributes say
    ``class_names``, ``palette``, ``mean``, ``std`` (on the 0..255 scale) and ``channel_order``; what it has not follows
    from the number of channels, and mean and std are ImageNet's.  arguments: that the function is called with, by name.
    Raises DeployError; what the user's own function raises passes through.
    """
    made = _resolve(source, arguments or {})(**(arguments or {}))
    module, spec = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module) or not isinstance(spec, (ModelSpec, type(None))):
        raise DeployError(f"factory {source}: got {_describe(made)}, expected an nn.Module or (nn.Module, ModelSpec)")
    module = LogitsOnly(module.float()).eval().requires_grad_(False)
    digest = ""
    remarks: tuple[str, ...] = ()
    if weights is not None:
        expected = frozenset(module.inner.state_dict())
        read = read_weights(weights).within(lambda keys: keys >= expected)
        fill(module.inner, read.state, weights)
        remarks = read.remarks
        digest = files_sha256([weights])
    who, said = f"factory {source}", _said(module.inner, source)
    taken = said.get("mean") if spec is None else spec.mean
    bands = channels_of(module, window, None if taken is None else len(taken), who)
    output = probe(module, window, who, bands)
    cut, ending = cut_module(module, window, output, bands)
    if ending is not None:
        output = probe(cut, window, who, bands)
    channels, stride = measure(output, window, who)
    threshold = None if ending is None else ending.threshold
    if spec is None:
        # Imported here: this table of data sets is no part of reading weights.
        from engines.images.palettes import default_classes, palette_for

        if taken is None and bands != 3:
            said |= {"mean": (0.0,) * bands, "std": (255.0,) * bands}
            remarks += (passed_on(bands),)
        names = said.pop("classes", None) or default_classes(channels)
        fields: dict[str, Any] = {"palette": palette_for(names), "logits_stride": stride, "threshold": threshold} | said
        spec = ModelSpec("custom", source, names, **fields)
    if channels == 1 and len(spec.classes) == 2 and spec.threshold in (None, THRESHOLD):  # not said otherwise
        spec = replace(spec, threshold=threshold or THRESHOLD)
    if (spec.channels, spec.logits_stride) != (channels, stride):
        raise DeployError(
            f"factory {source}: got a ModelSpec of {spec.channels} classes at 1/{spec.logits_stride}, expected "
            f"{channels} at 1/{stride}, as the module computes them"
        )
    spec = replace(spec, source=f"factory {source}", source_sha256=digest or spec.source_sha256)
    return LoadedModel(cut, spec, ending, remarks, output=(output.shape[2], output.shape[3]))


def pick_logits(output: Any) -> Tensor:
    """The logits in a module's output: the tensor, ``logits`` or ``out`` of a mapping, or the first of a sequence.

    Raises DeployError.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for name in _OUTPUTS:
            if isinstance(output.get(name), Tensor):
                found: Tensor = output[name]
                return found
    if isinstance(output, (list, tuple)):
        named = getattr(output, "logits", None)
        for item in (named, *output):
            if isinstance(item, Tensor):
                return item
    raise DeployError(
        f"factory: got {_describe(output)} from the module, expected a tensor of logits (N, K, h, w), a tuple with "
        "one, or a mapping with 'logits' or 'out'"
    )


def _said(module: nn.Module, source: str) -> dict[str, Any]:
    """Fields of a `ModelSpec` that the module has as attributes.  Raises DeployError for one of another kind."""
    config = getattr(module, "config", None)
    labels = getattr(config, "id2label", None)  # of transformers
    names = getattr(module, "class_names", None)
    if names is None and isinstance(labels, Mapping) and sorted(labels) == list(range(len(labels))):
        names = [labels[index] for index in range(len(labels))]
    found = {name: getattr(module, name, None) for name in ("palette", "mean", "std", "channel_order")}
    fields: dict[str, Any] = {"classes": names} | found
    try:
        for name in ("mean", "std"):
            if fields[name] is not None:
                fields[name] = tuple(float(value) for value in torch.as_tensor(fields[name]).flatten())
        if names is not None:
            fields["classes"] = tuple(map(str, names))
        if found["palette"] is not None:
            fields["palette"] = tuple((int(r), int(g), int(b)) for r, g, b in found["palette"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DeployError(
            f"factory {source}: got attributes that cannot be read ({error}), expected class_names as names, "
            "palette as [red, green, blue] each, mean and std as three numbers"
        ) from error
    std = fields["std"]
    if std is not None and 0 < min(std) < 1:
        raise DeployError(
            f"factory {source}: got std {std} for pixels of 0..1, expected it for 0..255; multiply mean and std by 255"
        )
    return {name: value for name, value in fields.items() if value is not None}


def _resolve(source: str, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    name, _, attribute = source.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python -m` does
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise DeployError(
            f"factory {source}: {error}; expected package.module:function, installed or below the current folder"
        ) from error
    if not callable(found) or isinstance(found, nn.Module):
        raise DeployError(f"factory {source}: got {_describe(found)}, expected a function that returns the module")
    try:
        signature = inspect.signature(found)
        signature.bind(**arguments)
    except TypeError as error:
        raise DeployError(
            f"factory {source}: {error}; it is called with {', '.join(arguments) or 'no arguments'} and takes "
            f"{signature}: give --arg NAME=VALUE"
        ) from error
    except ValueError:
        pass  # a builtin without a signature: calling it will tell
    return found  # type: ignore[no-any-return]


def _describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {', '.join(type(item).__name__ for item in value) or 'nothing'}"
    return f"{'an' if type(value).__name__[:1] in 'AEIOUaeiou' else 'a'} {type(value).__name__}"
