"""Records read from JSON: what fits is taken as it is, and everything else is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from engines.errors import DeployError
from engines.records import read_record


@dataclass(frozen=True)
class Inner:
    x: int


@dataclass(frozen=True)
class Outer:
    name: str
    pair: tuple[int, float]
    many: tuple[tuple[int, int], ...] = ()
    inner: Inner | None = None
    either: float | str = 0.0
    flags: Mapping[str, bool] = field(default_factory=dict)
    anything: Any = None


GOOD = {"name": "a", "pair": [1, 2]}


def test_what_fits_is_taken_and_integers_serve_as_floats() -> None:
    data = {**GOOD, "many": [[1, 2]], "inner": {"x": 3}, "either": "b", "flags": {"f": True}, "anything": [None]}
    assert read_record(Outer, data, "it") == Outer("a", (1, 2.0), ((1, 2),), Inner(3), "b", {"f": True}, [None])
    assert read_record(Outer, GOOD, "it") == Outer("a", (1, 2.0))
    assert type(read_record(Outer, GOOD, "it").pair[1]) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "it: name: got 1, expected a text"),
        ({"pair": [1]}, "it: pair: got 1 values, expected 2"),
        ({"pair": [1.0, 2]}, "it: pair: got 1.0, expected a whole number"),
        ({"pair": [True, 2]}, "it: pair: got True, expected a whole number"),
        ({"pair": [1, float("nan")]}, "it: pair: got nan, expected a finite number"),
        ({"pair": [1, 10**400]}, "expected a finite number"),
        ({"pair": "12"}, "it: pair: got '12', expected a list"),
        ({"many": [[1, 2], [3]]}, "it: many: got 1 values, expected 2"),
        ({"inner": 3}, "it: inner: got 3, expected an object"),
        ({"inner": {}}, "it: inner: the field x is missing"),
        ({"inner": {"x": 1, "y": 2}}, "it: inner: got the unknown field 'y'"),
        ({"either": None}, "it: either: got None, expected a text"),
        ({"flags": {"f": 1}}, "it: flags: f: got 1, expected true or false"),
        ({"name": "a" * 10_000, "pair": None}, "it: pair: got None, expected a list"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DeployError) as caught:
        read_record(Outer, {**GOOD, **change}, "it")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_what_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(DeployError, match="expected an object"):
        read_record(Outer, data, "it")
