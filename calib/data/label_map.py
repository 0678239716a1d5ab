"""The label map: a JSON file that lets a model be scored on a data set with other classes.

{
  "description": "free text",
  "image_size":  [720, 960],          height and width to which images are resized (bilinear) before the model sees
                                      them; the predicted labels are brought to the label's size, nearest
  "classes":     ["sky", "road"],     what is scored; the model's own classes if left out
  "prediction":  [1, 1, null, 0],     for each class of the model, in channel order, the class it counts as: a number or
                                      a name from "classes", or null for none of them (never right).  Or an object,
                                      {"road": "road", "sidewalk": "road", ...}, by the model's class names or numbers
  "label":       {"4": 0, "7": null}, for numbers in the data set's labels, the class they stand for, null for ignore;
                                      numbers that are not named keep their value
  "ignore":      [11]                 numbers in the data set's labels that are not scored
}

Every key may be left out.  "label" and "ignore" speak of the data set's own class numbers: the train ids of Cityscapes,
0..149 of ADE20K, 0..58 of PASCAL Context where 59 classes are scored, elsewhere the numbers in the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.contract import UInt8
from engines.errors import DeployError
from engines.spec import IGNORE_LABEL, MAX_CLASSES

MAPS = Path(__file__).with_name("maps")
_KEYS = ("description", "image_size", "classes", "prediction", "label", "ignore")

Pairs = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class LabelMap:
    """A label map that has been read.  Targets are class numbers, 255 for null.

    prediction: (model class, target) pairs by name or number, or None to keep the model's classes.
    label: (number in the data set, target) pairs.  image_size: (height, width) or None.
    """

    classes: tuple[str, ...] | None = None
    prediction: Pairs | None = None
    label: tuple[tuple[int, int], ...] = ()
    ignore: tuple[int, ...] = ()
    image_size: tuple[int, int] | None = None
    description: str = ""

    def prediction_table(self, model_classes: Sequence[str]) -> UInt8:
        """(256,) uint8: target class by model class, 255 where there is none.

        Raises DeployError unless `prediction` names every class of the model, once.
        """
        table = np.full(256, IGNORE_LABEL, np.uint8)
        if self.prediction is None:
            if self.classes is not None and len(self.classes) != len(model_classes):
                raise DeployError(
                    f"label map: got {len(self.classes)} classes for a model of {len(model_classes)} and no "
                    '"prediction"; add it, to say which class each of the model\'s counts as'
                )
            table[: len(model_classes)] = np.arange(len(model_classes))
            return table
        found: dict[int, int] = {}
        for key, target in self.prediction:
            index = _model_class(key, model_classes)
            if index in found:
                raise DeployError(f'label map: "prediction" names class {model_classes[index]!r} twice')
            found[index] = target
        absent = [name for index, name in enumerate(model_classes) if index not in found]
        if absent:
            raise DeployError(
                f'label map: "prediction" names {len(found)} of the {len(model_classes)} classes of the model; '
                f"add {', '.join(absent)} (null for none)"
            )
        for index, target in found.items():
            table[index] = target
        return table

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {"description": self.description, "image_size": self.image_size, "classes": self.classes}
        body["prediction"] = None if self.prediction is None else {k: _or_null(v) for k, v in self.prediction}
        body["label"] = {str(k): _or_null(v) for k, v in self.label}
        body["ignore"] = list(self.ignore)
        return {key: value for key, value in body.items() if value not in (None, "", {}, [])}

    @classmethod
    def from_json(cls, data: Any) -> LabelMap:
        """Inverse of `to_json`, and reader of the file.  Raises DeployError naming the key at fault."""
        if not isinstance(data, dict):
            raise DeployError(f"label map: got {type(data).__name__}, expected an object with {', '.join(_KEYS)}")
        unknown = sorted(set(data) - set(_KEYS))
        if unknown:
            raise DeployError(f"label map: got unknown key {unknown[0]!r}, expected some of {', '.join(_KEYS)}")
        classes = data.get("classes")
        if classes is not None and not (_all(classes, str) and 1 <= len(classes) <= MAX_CLASSES):
            raise DeployError(f'label map: got "classes" {classes!r}, expected a list of 1 to {MAX_CLASSES} names')
        size = data.get("image_size")
        if size is not None and not (_all(size, int) and len(size) == 2 and min(size) >= 1):
            raise DeployError(f'label map: got "image_size" {size!r}, expected [height, width] in pixels')
        prediction = data.get("prediction")
        label = data.get("label", {})
        return cls(
            None if classes is None else tuple(classes),
            None if prediction is None else tuple(_pairs("prediction", prediction, classes)),
            tuple((_label("label", key), target) for key, target in _pairs("label", label, classes)),
            tuple(_label("ignore", value) for value in _list("ignore", data.get("ignore", []))),
            None if size is None else (size[0], size[1]),
            str(data.get("description", "")),
        )


def read_label_map(name: str) -> LabelMap:
    """Read a JSON file, or one of those in calib/maps by its name.  Raises DeployError."""
    shipped = MAPS / f"{name}.json"
    path = shipped if "/" not in name and not Path(name).exists() and shipped.is_file() else Path(name)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(each.stem for each in MAPS.glob("*.json")))
        raise DeployError(f"label map {name}: no such file, expected a JSON file or one of: {known}") from error
    except OSError as error:
        raise DeployError(f"label map {name}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DeployError(f"label map {name}: not JSON: {error}") from error
    return LabelMap.from_json(data)


def _pairs(key: str, value: Any, classes: Sequence[str] | None) -> Iterable[tuple[str, int]]:
    if isinstance(value, Mapping):
        entries = [(str(k), v) for k, v in value.items()]
    else:
        entries = [(str(k), v) for k, v in enumerate(_list(key, value))]
    return [(k, _target(key, v, classes)) for k, v in entries]


def _target(key: str, value: Any, classes: Sequence[str] | None) -> int:
    limit = MAX_CLASSES if classes is None else len(classes)
    if value is None or (type(value) is int and value == IGNORE_LABEL):
        return IGNORE_LABEL
    if isinstance(value, str) and classes is not None and classes.count(value) == 1:
        return classes.index(value)
    if type(value) is int and 0 <= value < limit:
        return value
    raise DeployError(
        f'label map: got {value!r} in "{key}", expected a number 0..{limit - 1}, a name from "classes", or null'
    )


def _label(key: str, value: Any) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and int(text) <= 255):
        raise DeployError(f'label map: got {value!r} in "{key}", expected a number 0..255 as in the label files')
    return int(text)


def _model_class(key: str, classes: Sequence[str]) -> int:
    if classes.count(key) == 1:
        return classes.index(key)
    if key.isascii() and key.isdigit() and int(key) < len(classes):
        return int(key)
    raise DeployError(
        f'label map: got {key!r} in "prediction", expected a class of the model: 0..{len(classes) - 1}, '
        f"{', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}"
    )


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise DeployError(f'label map: got "{key}" {value!r}, expected a list')
    return value


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(type(each) is kind for each in value)


def _or_null(target: int) -> int | None:
    return None if target == IGNORE_LABEL else target
