"""TensorRT releases without TensorRT: modules that have the recorded names and signatures, and nothing else.

What is not in the recording raises AttributeError, as in the real one; what is called with other arguments, TypeError.
Every call and every assignment is noted in ``sdk.log``.  What a call does is in ``behaviour.py``.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
_recorded = (path.stem for path in HERE.glob("[0-9]*.json"))
RTX = "rtx-1.7.1.116"
VERSIONS = tuple(sorted(_recorded, key=lambda name: [int(part) for part in name.split(".")]))
SUBCLASSED = ("ILogger", "IProfiler", "IProgressMonitor")  # by the adapter, which then has attributes of its own


class Member(enum.Enum):
    """As pybind11's enums: a name and a number, but not a number itself."""

    def __int__(self) -> int:
        return int(self.value)


def fake(version: str, behaviours: dict[str, type]) -> Any:
    """behaviours: by class, what its methods and properties do.  What has none must not be touched."""
    api = json.loads((HERE / f"{version}.json").read_text())
    sdk: Any = ModuleType("tensorrt")
    sdk.__version__ = version.removeprefix("rtx-")
    sdk.log = []  # ("Class.name", arguments) in their order
    sdk.world = {}  # what the behaviours share
    for name, members in api["enums"].items():
        setattr(sdk, name, Member(name, members))
    for name, members in api["classes"].items():
        setattr(sdk, name, _class(sdk, name, members, behaviours.get(name, object)))
    return sdk


def called(sdk: Any) -> set[str]:
    return {name for name, _ in sdk.log}


def _class(sdk: Any, name: str, members: dict[str, Any], behaviour: type) -> type:
    if name in SUBCLASSED:
        return type(name, (), {"__init__": lambda self: None})
    body: dict[str, Any] = {"_sdk": sdk, "_modelled": behaviour, "__setattr__": _refuse_unknown(name, members)}
    for member, shape in members.items():
        if member == "__init__":
            body[member] = _constructor(name, shape)
        elif shape and shape[0] == "read":
            body[member] = _property(name, member, len(shape) == 2)
        else:
            body[member] = _method(name, member, shape, getattr(behaviour, member, None))
    # What the behaviour adds for itself has a leading underscore.
    body.update({key: value for key, value in vars(behaviour).items() if key[0] == "_" and key[1] != "_"})
    return type(name, (), body)


def make(sdk: Any, name: str, **state: Any) -> Any:
    """An object that only the SDK can make, with `state` for its behaviour."""
    cls = getattr(sdk, name)
    made = cls.__new__(cls)
    for key, value in state.items():
        object.__setattr__(made, key, value)
    return made


def say(sdk: Any, logger: Any, text: str) -> None:
    """Give a logger an error."""
    logger.log(type("Severity", (), {"__str__": lambda self: "Severity.ERROR"})(), text)


def _refuse_unknown(cls: str, members: dict[str, Any]) -> Callable[[Any, str, Any], None]:
    def assign(self: Any, name: str, value: Any) -> None:
        if name[0] != "_" and members.get(name, [])[:1] != ["read"]:
            raise AttributeError(f"{cls} has no attribute {name!r} in TensorRT {self._sdk.__version__}")
        object.__setattr__(self, name, value)

    return assign


def _constructor(cls: str, shape: list[str] | None) -> Callable[..., None]:
    def construct(self: Any, *arguments: Any) -> None:
        if shape is None or len(arguments) != len(shape):
            raise TypeError(f"{cls}: cannot be made from {len(arguments)} arguments")
        self._sdk.log.append((cls, arguments))
        begin = getattr(self._modelled, "_begin", None)
        if begin is not None:
            begin(self, *arguments)

    return construct


def _property(cls: str, name: str, writable: bool) -> property:
    def read(self: Any) -> Any:
        rule = getattr(self._modelled, name, None)
        if rule is not None:
            return rule(self)
        if f"_{name}" not in vars(self):
            raise AssertionError(f"{cls}.{name} was read, which the fakes do not model")
        return vars(self)[f"_{name}"]

    def write(self: Any, value: Any) -> None:
        self._sdk.log.append((f"{cls}.{name}", (value,)))
        check = getattr(self._modelled, f"_set_{name}", None)
        if check is not None:
            check(self, value)
        object.__setattr__(self, f"_{name}", value)

    return property(read, write if writable else None)


def _method(cls: str, name: str, shape: list[str] | None, rule: Callable[..., Any] | None) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if shape is not None:
            known = [parameter.rstrip("=") for parameter in shape]
            needed = [parameter for parameter in shape if not parameter.endswith("=")]
            given = set(known[: len(arguments)]) | set(keywords)
            if len(arguments) > len(known) or not set(needed) <= given <= set(known):
                raise TypeError(f"{cls}.{name}{tuple(shape)}: got {arguments} {keywords}")
        self._sdk.log.append((f"{cls}.{name}", (*arguments, *keywords.values())))
        if rule is None:
            raise AssertionError(f"{cls}.{name} was called, which the fakes do not model")
        return rule(self, *arguments, **keywords)

    return call
