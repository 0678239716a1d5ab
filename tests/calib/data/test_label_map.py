"""Label maps: what they say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calib.data.label_map import MAPS, LabelMap, read_label_map
from engines.errors import DeployError
from engines.images.palettes import DATASETS

CITYSCAPES, CAMVID = DATASETS["cityscapes"].names, DATASETS["camvid"].names


def test_the_shipped_map_is_the_one_of_the_data_readme() -> None:
    label_map = read_label_map("cityscapes_to_camvid")
    expected = [3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10]
    table = label_map.prediction_table(CITYSCAPES)
    assert table[:19].tolist() == expected
    assert set(table[19:].tolist()) == {255}
    assert (label_map.classes, label_map.image_size, label_map.ignore) == (CAMVID, (720, 960), (11,))
    as_list = LabelMap.from_json({"classes": list(CAMVID), "prediction": expected})
    assert np.array_equal(as_list.prediction_table(CITYSCAPES), table)


@pytest.mark.parametrize("path", sorted(MAPS.glob("*.json")), ids=lambda p: p.stem)
def test_shipped_maps_survive_json(path: Path) -> None:
    label_map = read_label_map(str(path))
    assert LabelMap.from_json(json.loads(json.dumps(label_map.to_json()))) == label_map


def test_numbers_names_and_null() -> None:
    data = {"classes": ["x", "y"], "prediction": {"road": "y", "1": 0, "2": None}, "label": {"7": "y", "8": None}}
    label_map = LabelMap.from_json(data)
    assert label_map.prediction_table(["road", "car", "sky"])[:4].tolist() == [1, 0, 255, 255]
    assert label_map.label == ((7, 1), (8, 255))
    assert LabelMap.from_json(json.loads(json.dumps(label_map.to_json()))) == label_map


def test_without_a_prediction_the_model_keeps_its_classes() -> None:
    label_map = LabelMap.from_json({"image_size": [10, 20]})
    assert label_map.prediction_table(["a", "b"])[:3].tolist() == [0, 1, 255]
    with pytest.raises(DeployError, match='2 classes for a model of 3 and no "prediction"'):
        LabelMap.from_json({"classes": ["a", "b"]}).prediction_table(["a", "b", "c"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "got list, expected an object"),
        ({"predictions": []}, "unknown key 'predictions'"),
        ({"classes": []}, '"classes"'),
        ({"classes": "sky"}, '"classes"'),
        ({"image_size": 720}, '"image_size" 720'),
        ({"image_size": [720, 0]}, '"image_size"'),
        ({"image_size": [720.5, 1]}, '"image_size"'),
        ({"prediction": 3}, '"prediction" 3, expected a list'),
        ({"prediction": [-1]}, r'-1 in "prediction", expected a number 0..254'),
        ({"classes": ["a", "b"], "prediction": [2]}, r'2 in "prediction", expected a number 0..1'),
        ({"classes": ["a", "b"], "prediction": ["c"]}, "'c' in \"prediction\""),
        ({"classes": ["a"], "prediction": [True]}, 'True in "prediction"'),
        ({"label": {"road": 1}}, "'road' in \"label\", expected a number 0..255"),
        ({"label": {"256": 1}}, "'256' in \"label\""),
        ({"ignore": [-1]}, '-1 in "ignore"'),
        ({"ignore": 11}, '"ignore" 11, expected a list'),
    ],
)
def test_what_is_wrong_is_named(data: Any, message: str) -> None:
    with pytest.raises(DeployError, match=message):
        LabelMap.from_json(data)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ([0, 1], r"names 2 of the 3 classes of the model; add sky"),
        ({"road": 0, "0": 1, "car": 1, "sky": 1}, "names class 'road' twice"),
        ({"tram": 0}, "'tram' in \"prediction\", expected a class of the model"),
        ([0, 1, 0, 1], "'3' in \"prediction\""),
    ],
)
def test_every_class_of_the_model_is_named_once(prediction: Any, message: str) -> None:
    label_map = LabelMap.from_json({"classes": ["a", "b"], "prediction": prediction})
    with pytest.raises(DeployError, match=message):
        label_map.prediction_table(["road", "car", "sky"])


def test_a_file_that_is_missing_or_not_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="mars: no such file, expected a JSON file or one of: binary, cityscapes_to"):
        read_label_map("mars")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DeployError, match=r"a\.json: not JSON"):
        read_label_map(str(tmp_path / "a.json"))
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DeployError, match=r"b\.json: not JSON"):
        read_label_map(str(tmp_path / "b.json"))
    with pytest.raises(DeployError, match="cannot be read"):
        read_label_map(str(tmp_path))
