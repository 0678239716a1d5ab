"""What a training run saved -> the one state dict that is to be deployed, and how it was found.

Trainers wrap weights twice: in a dictionary beside the optimizer, and with a prefix from the module that holds the
network.  Of averaged (EMA) and raw weights the averaged ones are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

Fits = Callable[[frozenset[str]], bool]

_AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "params_ema", "ema")  # the best first
_CONTAINERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "network_weights",
               "weights", "params")  # fmt: skip
_AVERAGED_PREFIXES = ("ema_model.", "model_ema.", "ema.")
_PREFIXES = (
    "module.", "_orig_mod.", "base_model.model.", "model.", "net.", "network.", "segmentor.", "student.",
)  # fmt: skip
_DEPTH = 4  # of prefixes: compiled, in DistributedDataParallel, in Lightning, in a user's own class
_MMCV = "ema_"  # of EMAHook's buffers: the name with dots written as underscores
_SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """A state dict, the ``meta`` beside it, and remarks on what was taken and what was left."""

    state: dict[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def within(self, fits: Fits) -> Weights:
        """Below the prefix without which `fits` recognises the keys; as it is where none is such."""
        for prefix in _prefixes(frozenset(self.state)):
            inner = {key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)}
            if not fits(frozenset(inner)):
                continue
            outside = sorted(key for key in self.state if not key.startswith(prefix))
            said = [f"averaged (EMA) weights, below {prefix}"] * any(name in prefix for name in _AVERAGED_PREFIXES)
            said += [f"left out, since it is no part of {prefix}: {_some(outside)}"] * bool(outside)
            return replace(self, state=inner, remarks=(*self.remarks, *said))._with_mmcv_averages()
        return self

    def _with_mmcv_averages(self) -> Weights:
        averages = {key: value for key, value in self.state.items() if key.startswith(_MMCV)}
        rest = {key: value for key, value in self.state.items() if key not in averages}
        named = {_MMCV + key.replace(".", "_"): key for key in rest}
        if not averages or not averages.keys() <= named.keys():
            return self
        if "EpochBasedRunner" in str(self.meta.get("config")):
            # Its hook exchanges the two before an epoch's weights are saved; an IterBasedRunner never does.
            said = f"averaged (EMA) weights, as EMAHook of an EpochBasedRunner saves them; raw: {_MMCV}*"
        else:
            rest |= {named[key]: value for key, value in averages.items()}
            said = f"averaged (EMA) weights: {len(averages)} tensors {_MMCV}* of mmcv's EMAHook"
        return replace(self, state=rest, remarks=(*self.remarks, said))


def unwrap(content: Any) -> tuple[Any, Mapping[str, Any], tuple[str, ...]]:
    """The innermost mapping of names to tensors, as far as one is found; the ``meta`` beside it; remarks."""
    meta: Mapping[str, Any] = {}
    remarks: tuple[str, ...] = ()
    while isinstance(content, Mapping):
        if isinstance(content.get("meta"), Mapping):
            meta = content["meta"]
        name = _chosen(content)
        if name is None:
            break
        if name in _AVERAGED:
            remarks += (f"averaged (EMA) weights: {name} of {', '.join(_candidates(content))}",)
        elif _AVERAGED[1] in content:
            remarks += ("averaged (EMA) weights, which mmengine saves as state_dict; raw: ema_state_dict",)
        content = content[name]
    return content, meta, remarks


def _chosen(content: Mapping[Any, Any]) -> str | None:
    found = _candidates(content)
    if "message_hub" in content and "state_dict" in found:  # an mmengine Runner's: its hook has exchanged the two
        return "state_dict"
    return found[0] if found else None


def _candidates(content: Mapping[Any, Any]) -> list[str]:
    return [name for name in (*_AVERAGED, *_CONTAINERS) if isinstance(content.get(name), Mapping) and content[name]]


def _prefixes(keys: frozenset[str], depth: int = _DEPTH) -> Iterator[str]:
    """What may stand before a network's own keys, averaged weights first."""
    if not any(key.startswith(_AVERAGED_PREFIXES) for key in keys):
        yield ""
    for prefix in (*_AVERAGED_PREFIXES, *_PREFIXES):
        inner = frozenset(key.removeprefix(prefix) for key in keys if key.startswith(prefix))
        if inner and depth:
            yield from (prefix + deeper for deeper in _prefixes(inner, depth - 1))
    yield ""


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return shown if len(keys) <= _SHOWN else f"{shown} and {len(keys) - _SHOWN} more"
