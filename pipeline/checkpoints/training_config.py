"""The training config that mmsegmentation and fudan-zvg leave in a checkpoint, as Python text: read as data, never run.

It holds what the weights do not say: whether corners are aligned, by how much a decoder upsamples, which blocks it
reads, the preprocessing.  Only literals, ``dict(...)``, earlier names and arithmetic on numbers are understood; any
other expression is `UNREAD`, and refused where its value matters.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from engines.errors import DeployError

T = TypeVar("T")
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
               ast.Div: operator.truediv}  # fmt: skip
_LONGEST = 1 << 22  # characters of a config; published ones have some ten thousand


class _Unread:
    def __repr__(self) -> str:
        return "an expression that is no plain value"


UNREAD = _Unread()


@dataclass
class TrainingConfig:
    """What a checkpoint's config says, and what was taken for granted where it has none.

    values: the config's top-level names; None: there is no config.
    """

    values: Mapping[str, Any] | None = None
    assumed: list[str] = field(default_factory=list)

    @property
    def found(self) -> bool:
        return self.values is not None

    def constant(self, place: str, default: T, published: T) -> T:
        """The value at `place` of the model, such as ``decode_head.up_scale``; `default` where it is left out.

        published: what every published model has: taken, and remembered as assumed, where there is no config.
        Raises DeployError for a value of another type than `default`.
        """
        if self.values is None:
            self.assumed.append(f"{place} {_said(published)}")
            return published
        value = self.lookup(f"model.{place}", default)
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if isinstance(value, type(default)) and (isinstance(value, bool) == isinstance(default, bool)):
            return value
        raise DeployError(f"training config: {place}: got {value!r}, expected {_kind(default)} such as {default!r}")

    def require(self, place: str, *supported: Any) -> None:
        """Raises DeployError where the config has another value at `place` of the model than those supported."""
        value = self.lookup(f"model.{place}", supported[0])
        value = tuple(value) if isinstance(value, list) else value
        if value not in supported:
            raise DeployError(
                f"training config: {place}: got {value!r}, expected {' or '.join(map(repr, supported))}; "
                "load this model through a Python factory"
            )

    def lookup(self, place: str, default: Any = None) -> Any:
        """The value at ``name.name.name``, or `default`."""
        value: Any = self.values if self.values is not None else {}
        for name in place.split("."):
            if not isinstance(value, Mapping) or name not in value:
                return default
            value = value[name]
        return value

    def normalisation(self) -> dict[str, Any]:
        """``mean``, ``std`` and ``channel_order`` of a `ModelSpec`; {} where it has none.  Raises DeployError."""
        for name in ("model.data_preprocessor", "data_preprocessor", "img_norm_cfg"):
            found = self.lookup(name)
            if isinstance(found, Mapping):
                return _normalisation(found, name)
        for step in _dicts(self.values):
            if step.get("type") == "Normalize":
                return _normalisation(step, "Normalize")
        self.assumed.append("mean and std of ImageNet, RGB")
        return {}

    def remarks(self) -> tuple[str, ...]:
        if not self.assumed:
            return ()
        return (f"not said in the file, assumed as published: {', '.join(dict.fromkeys(self.assumed))}",)


def read_config(meta: Mapping[str, Any]) -> TrainingConfig:
    """The config in a checkpoint's ``meta``, of either generation: ``config`` until 1.0, ``cfg`` since."""
    for key in ("cfg", "config"):
        text = meta.get(key)
        if isinstance(text, str) and text.strip() and len(text) <= _LONGEST:
            values = _values(text)
            if values is not None and isinstance(values.get("model"), Mapping):
                return TrainingConfig(values)
    return TrainingConfig()


def _values(text: str) -> dict[str, Any] | None:
    try:
        names: dict[str, Any] = {}
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                names[node.targets[0].id] = _value(node.value, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return names


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return [_value(item, names) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item, names) for item in items)
        case ast.Dict(keys=keys, values=values):
            return _merged([(None if key is None else _value(key, names), _value(value, names))
                            for key, value in zip(keys, values, strict=True)])  # fmt: skip
        case ast.Call(func=ast.Name(id="dict"), args=args, keywords=keywords) if len(args) <= 1:
            return _merged([(None, _value(each, names)) for each in args]
                           + [(keyword.arg, _value(keyword.value, names)) for keyword in keywords])  # fmt: skip
        case ast.Name(id=name):
            return names.get(name, UNREAD)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _value(operand, names)
            return -value if _is_number(value) else UNREAD
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            a, b = _value(left, names), _value(right, names)
            if not (_is_number(a) and _is_number(b)) or (isinstance(op, ast.Div | ast.FloorDiv) and b == 0):
                return UNREAD
            return _ARITHMETIC[type(op)](a, b)
    return UNREAD


def _merged(items: list[tuple[Any, Any]]) -> Any:
    """A dict from (key, value), where the key None unpacks a dict."""
    result: dict[Any, Any] = {}
    for key, value in items:
        if key is not None and isinstance(key, str | int | float):
            result[key] = value
        elif key is None and isinstance(value, Mapping):
            result.update(value)
        else:
            return UNREAD
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18


def _normalisation(step: Mapping[str, Any], name: str) -> dict[str, Any]:
    mean, std = step.get("mean"), step.get("std")
    if mean is None and std is None:  # SegDataPreProcessor then leaves the pixels as they are
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for value in (mean, std):
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(_is_number, value)):
            raise DeployError(f"training config: {name}: got mean {mean!r}, std {std!r}, expected three numbers each")
    # Until 1.0 Normalize turns BGR to RGB unless told not to; since, the preprocessor does so only if told.
    rgb = step.get("bgr_to_rgb", step.get("rgb_to_bgr", False)) if "preprocessor" in name else step.get("to_rgb", True)
    return {
        "mean": tuple(map(float, mean)), "std": tuple(map(float, std)),  # type: ignore[arg-type]
        "channel_order": "RGB" if rgb is True else "BGR",
    }  # fmt: skip


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for each in value.values():
            yield from _dicts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _dicts(each)


def _said(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kind(value: Any) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", tuple: "a list", str: "a name"}
    return names[type(value)]
