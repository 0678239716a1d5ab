"""`Ranges`: what the tensors of one graph were seen to hold, as JSON that can be read, edited, re-used and compared."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calib.ranges.split import Photograph
from engines.errors import DeployError
from engines.files import replacing

SCHEMA = 1
KIND = "edgeseg ranges"
_SCALARS = ("amax", "low", "high", "rms")
_CHANNELS = ("channel_amax", "channel_mean")
_COUNTS = ("images", "windows", "seed")


def is_ranges(path: Path) -> bool:
    """Whether `path` means measured ranges; else it is a photograph or a folder of them."""
    return path.suffix.lower() == ".json"


@dataclass(frozen=True)
class TensorRange:
    """One tensor of the graph.

    amax: the clipping value of |x|, above 0, by `Ranges.method`.  low, high: the least and the largest value seen.
    rms: root of the mean square.  channel_amax, channel_mean: max |x| and E[x] by channel, for the inputs of Linear and
    convolution layers, otherwise None.  Everything is rounded to 7 digits.
    """

    amax: float
    low: float
    high: float
    rms: float
    channel_amax: tuple[float, ...] | None = None
    channel_mean: tuple[float, ...] | None = None

    def fault(self) -> str | None:
        """None, or what no calibration could have given."""
        values = (self.amax, self.low, self.high, self.rms, *(self.channel_amax or ()), *(self.channel_mean or ()))
        if not all(math.isfinite(value) for value in values):
            return "got NaN or infinity, expected finite numbers"
        if self.amax <= 0:
            return f"got amax {self.amax:g}, expected above 0: a scale of zero erases the tensor"
        if self.low > self.high or self.rms < 0:
            return f"got low {self.low:g}, high {self.high:g}, rms {self.rms:g}, expected low <= high and rms >= 0"
        if self.channel_amax is not None and (not self.channel_amax or min(self.channel_amax) < 0):
            return "got a negative channel_amax or none at all, expected one value of 0 or more a channel"
        if len(self.channel_amax or ()) != len(self.channel_mean or ()):
            return f"got {len(self.channel_amax or ())} channel_amax, {len(self.channel_mean or ())} channel_mean"
        return None


@dataclass(frozen=True)
class Ranges:
    """tensors: by ONNX tensor name.  method: max, percentile:99.99, entropy or mse; it gave the amax of the tensors
    that enter Linear and Conv layers, whereas that of all others is the largest |x| seen.

    images, windows: how many were looked at.  dataset_sha256, graph_sha256: what they were made from.
    photographs: the images that were looked at, so that none of them is called held out; None where that is not known.
    Raises DeployError on numbers that no calibration could have given.
    """

    tensors: Mapping[str, TensorRange]
    method: str
    images: int
    windows: int
    seed: int
    dataset_sha256: str
    graph_sha256: str
    photographs: tuple[Photograph, ...] | None = None

    def __post_init__(self) -> None:
        if not self.tensors:
            raise DeployError("ranges: got no tensors, expected at least one; run deploy.py calibrate again")
        for name, tensor in self.tensors.items():
            fault = tensor.fault()
            if fault:
                raise DeployError(f"ranges: tensor {name}: {fault}; correct it or run deploy.py calibrate again")

    def to_json(self) -> dict[str, Any]:
        header = {"kind": KIND, "schema": SCHEMA, "method": self.method}
        header |= {name: getattr(self, name) for name in _COUNTS}
        header |= {"dataset_sha256": self.dataset_sha256, "graph_sha256": self.graph_sha256}
        if self.photographs is not None:
            header["photographs"] = [each.to_json() for each in self.photographs]
        return header | {"tensors": {name: _tensor_to_json(value) for name, value in self.tensors.items()}}

    @classmethod
    def from_json(cls, data: Any, where: str = "ranges") -> Ranges:
        """Inverse of `to_json`.  `where` names the file in errors.  Raises DeployError."""
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise DeployError(f"{where}: not ranges of edgeseg; expected a file made by deploy.py calibrate")
        if data.get("schema") != SCHEMA:
            raise DeployError(
                f"{where}: got schema {data.get('schema')}, expected {SCHEMA}; run deploy.py calibrate again"
            )
        fields = {"kind", "schema", "method", *_COUNTS, "dataset_sha256", "graph_sha256", "tensors"}
        _same_fields({name: 0 for name in data if name != "photographs"}, fields, where)
        tensors, counts = data["tensors"], [data[name] for name in _COUNTS]
        if not isinstance(tensors, dict) or not all(type(count) is int and count >= 0 for count in counts):
            raise DeployError(f"{where}: got ill-typed tensors, images, windows or seed; expected what calibrate wrote")
        texts = [data[name] for name in ("method", "dataset_sha256", "graph_sha256")]
        if not all(isinstance(text, str) for text in texts):
            raise DeployError(f"{where}: got {texts} as method and digests, expected texts; run calibrate again")
        read = {name: _tensor_from_json(value, f"{where}: tensor {name}") for name, value in tensors.items()}
        ranges = cls(read, texts[0], *counts, *texts[1:])
        return replace(ranges, photographs=_photographs(data.get("photographs"), where))

    def save(self, path: Path) -> None:
        """Write `path` whole or not at all: one line for a photograph, for a tensor's numbers, for its channels."""
        data = self.to_json()
        tensors = data.pop("tensors")
        seen = ",\n".join(f"  {json.dumps(each)}" for each in data.pop("photographs", []))
        lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in data.items()]
        lines += [] if self.photographs is None else [' "photographs": [', *([seen] if seen else []), " ],"]
        blocks = []
        for name, value in tensors.items():
            channels = [f",\n   {json.dumps(key)}: {json.dumps(value.pop(key))}" for key in _CHANNELS if key in value]
            blocks.append(f"  {json.dumps(name)}: {json.dumps(value)[:-1]}{''.join(channels)}}}")
        text = "\n".join(["{", *lines, ' "tensors": {', ",\n".join(blocks), " }", "}", ""])
        with replacing(path, "ranges") as file:
            file.write(text.encode())

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """Read a file that `save` wrote.

        It may have been edited: what is checked is its form (kind, schema, the fields and their types) and that its
        numbers are possible (finite, amax above 0, low <= high); not that calibration gave them.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DeployError(f"ranges {path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:  # the latter from absurd nesting
            raise DeployError(f"ranges {path}: not JSON ({error}); undo the edit or run calibrate again") from error
        return cls.from_json(data, f"ranges {path}")

    def require(self, graph_sha256: str, tensors: Collection[str] = ()) -> None:
        """Raise DeployError unless these are ranges of that graph and hold those tensors."""
        if self.graph_sha256 != graph_sha256:
            raise DeployError(
                f"ranges: made for graph {self.graph_sha256[:12]}, but this model's is {graph_sha256[:12]}: other "
                "weights, options or --tile; run deploy.py calibrate with the options of build-engine"
            )
        missing = [name for name in tensors if name not in self.tensors]
        if missing:
            raise DeployError(
                f"ranges: {len(missing)} tensor(s) are missing, first {missing[0]}; run deploy.py calibrate again"
            )


def _tensor_to_json(tensor: TensorRange) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(tensor, name) for name in _SCALARS}
    return values | {name: list(getattr(tensor, name)) for name in _CHANNELS if getattr(tensor, name) is not None}


def _tensor_from_json(data: Any, where: str) -> TensorRange:
    if not isinstance(data, dict):
        raise DeployError(f"{where}: got {data!r}, expected an object with {', '.join(_SCALARS)}")
    _same_fields({name: 0 for name in data if name not in _CHANNELS}, set(_SCALARS), where)
    amax, low, high, rms = (_number(data[name], f"{where}: {name}") for name in _SCALARS)
    channels: dict[str, tuple[float, ...] | None] = dict.fromkeys(_CHANNELS)
    for name in _CHANNELS:
        if name in data:
            if not isinstance(data[name], list):
                raise DeployError(f"{where}: got {name} {data[name]!r}, expected a list of numbers")
            channels[name] = tuple(_number(value, f"{where}: {name}") for value in data[name])
    return TensorRange(
        amax, low, high=high, rms=rms, channel_amax=channels["channel_amax"], channel_mean=channels["channel_mean"]
    )


def _photographs(data: Any, where: str) -> tuple[Photograph, ...] | None:
    if data is None:
        return None
    try:
        found = tuple(Photograph(each["name"], each["sha256"]) for each in data)
    except (TypeError, KeyError) as error:
        raise DeployError(f"{where}: got ill-typed photographs ({error!r}); run deploy.py calibrate again") from error
    if not all(isinstance(text, str) for each in found for text in (each.name, each.sha256)):
        raise DeployError(f"{where}: got photographs whose name or sha256 is no text; run deploy.py calibrate again")
    return found


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DeployError(f"{where}: got {value!r}, expected a number; correct it or run deploy.py calibrate again")
    try:
        return float(value)
    except OverflowError as error:
        raise DeployError(f"{where}: got an integer beyond all floats, expected a number") from error


def _same_fields(data: Mapping[str, Any], expected: set[str], where: str) -> None:
    missing, unknown = sorted(expected - set(data)), sorted(set(data) - expected)
    if missing or unknown:
        raise DeployError(
            f"{where}: fields missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}; "
            "undo the edit or run deploy.py calibrate again"
        )
