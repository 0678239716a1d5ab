"""Records from JSON: each field is what its annotation says, or the record is refused by the name of that field."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from engines.errors import DeployError

Record = TypeVar("Record")
_SCALARS = {str: "a text", int: "a whole number", bool: "true or false", float: "a finite number", type(None): "null"}


def read_record(kind: type[Record], data: Any, where: str, advice: str = "build it again") -> Record:
    """`kind`, a dataclass, from what `json.loads` gave; fields with a default may be missing.

    Understood are str, int, float, bool, None, unions of them, tuples, ``Mapping[str, X]``, Any and other dataclasses.
    A tuple is a list in JSON.  Raises DeployError: ``where: field: got ..., expected ...; advice``.
    """
    try:
        found: Record = _record(kind, data, where)
    except _Mismatch as error:
        raise DeployError(f"{error}; {advice}") from error
    return found


class _Mismatch(Exception):
    pass


def _record(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise _Mismatch(f"{where}: got {_short(data)}, expected an object")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    unknown = [name for name in data if name not in names]
    if unknown:
        raise _Mismatch(f"{where}: got the unknown field {_short(unknown[0])}")
    for field in fields(kind):
        if field.name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise _Mismatch(f"{where}: the field {field.name} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):  # a class that reads itself knows what its older files held
        return hint.from_json(value) if hasattr(hint, "from_json") else _record(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value, where)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _Mismatch(f"{where}: got {_short(value)}, expected an object")
        return {key: _value(arguments[1], each, f"{where}: {key}") for key, each in value.items()}
    return _scalar(hint, value, where)


def _one_of(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    left = [choice for choice in choices if choice is not type(None)]
    for choice in left[:-1]:
        try:
            return _value(choice, value, where)
        except _Mismatch:
            continue
    return _value(left[-1], value, where)


def _tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _Mismatch(f"{where}: got {_short(value)}, expected a list")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise _Mismatch(f"{where}: got {len(value)} values, expected {len(items)}")
    return tuple(_value(hint, each, where) for hint, each in zip(items, value, strict=True))


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise _Mismatch(f"{where}: got {_short(value)}, expected {_SCALARS[kind]}")
    return value


def _short(value: Any) -> str:
    text = "an object" if isinstance(value, Mapping) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
