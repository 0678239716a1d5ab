"""Ranges as a file that users read, edit and mix up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calib.ranges.ranges import Ranges, TensorRange
from calib.ranges.split import Photograph
from engines.errors import DeployError

RANGES = Ranges(
    {
        "image": TensorRange(2.5, -2.117904, 2.64, 0.95, (2.2, 2.4, 2.64), (-0.46, -0.37, -0.048)),
        'odd "name"/é': TensorRange(1e-30, 0.0, 1e-30, 5e-31),
    },
    "percentile:99.99", images=3, windows=8, seed=1, dataset_sha256="ab" * 32, graph_sha256="cd" * 32,
)  # fmt: skip


def test_round_trip_through_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    RANGES.save(path)
    assert Ranges.load(path) == RANGES
    assert json.loads(path.read_text()) == RANGES.to_json()
    assert '"image": {"amax": 2.5, "low": -2.117904, "high": 2.64, "rms": 0.95' in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["ranges.json"]


def test_an_edited_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    RANGES.save(path)
    path.write_text(path.read_text().replace('"amax": 2.5', '"amax": 2'))
    assert Ranges.load(path).tensors["image"].amax == 2


def test_the_images_that_were_seen_are_kept_where_they_are_known(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    for seen in ((), (Photograph("images/1.png", "ef" * 32, Path("/here/1.png")), Photograph("é.jpg", "01" * 32))):
        replace(RANGES, photographs=seen).save(path)
        assert Ranges.load(path).photographs == seen
    assert '\n  {"name": "images/1.png", "sha256": "efef' in path.read_text()
    RANGES.save(path)
    assert Ranges.load(path).photographs is None


def _edit(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        if value is None:
            del data[keys[-1]]
        else:
            data[keys[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edit("kind", value="modelopt"), "not ranges of edgeseg"),
        (_edit("schema", value=99), "got schema 99, expected 1"),
        (_edit("seed", value=None), "missing: seed"),
        (_edit("seed", value=-1), "ill-typed"),
        (_edit("windows", value=True), "ill-typed"),
        (_edit("photographs", value=[1]), "ill-typed photographs"),
        (_edit("photographs", value=[{"name": "a", "sha256": 1}]), "whose name or sha256 is no text"),
        (_edit("note", value="mine"), "unknown: note"),
        (_edit("method", value=5), "as method and digests"),
        (_edit("tensors", value={}), "got no tensors"),
        (_edit("tensors", value=[1]), "ill-typed tensors"),
        (_edit("tensors", "image", value=3), "tensor image: got 3, expected an object"),
        (_edit("tensors", "image", "amax", value=None), "tensor image: fields missing: amax"),
        (_edit("tensors", "image", "amax", value=0), "tensor image: got amax 0, expected above 0"),
        (_edit("tensors", "image", "amax", value=-1), "tensor image: got amax -1"),
        (_edit("tensors", "image", "amax", value=float("nan")), "tensor image: got NaN"),
        (_edit("tensors", "image", "amax", value=float("inf")), "tensor image: got NaN or infinity"),
        (_edit("tensors", "image", "amax", value=10**400), "beyond all floats"),
        (_edit("tensors", "image", "amax", value="2"), "tensor image: amax: got '2', expected a number"),
        (_edit("tensors", "image", "amax", value=True), "got True, expected a number"),
        (_edit("tensors", "image", "low", value=3), "expected low <= high"),
        (_edit("tensors", "image", "rms", value=-3), "rms >= 0"),
        (_edit("tensors", "image", "channel_amax", value=[1, -2, 3]), "negative channel_amax"),
        (_edit("tensors", "image", "channel_amax", value=[1, 2]), "got 2 channel_amax, 3 channel_mean"),
        (_edit("tensors", "image", "channel_mean", value=7), "expected a list"),
        (_edit("tensors", "image", "channel_mean", value=[1, None, 2]), "expected a number"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    data = RANGES.to_json()
    edit(data)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(data))
    with pytest.raises(DeployError, match=message) as caught:
        Ranges.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"null", b'"text"', b"[" * 100_000])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    with pytest.raises(DeployError, match=r"foreign\.json"):
        Ranges.load(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="No such file"):
        Ranges.load(tmp_path / "none.json")
    with pytest.raises(DeployError, match="cannot be written"):
        RANGES.save(tmp_path / "none" / "ranges.json")
    with pytest.raises(DeployError, match="cannot be read"):
        Ranges.load(tmp_path)


def test_ranges_of_another_model_are_refused() -> None:
    RANGES.require("cd" * 32, ["image"])
    with pytest.raises(DeployError, match="made for graph cdcdcdcdcdcd, but this model's is abababababab"):
        RANGES.require("ab" * 32)
    with pytest.raises(DeployError, match=r"1 tensor\(s\) are missing, first conv2d"):
        RANGES.require("cd" * 32, ["image", "conv2d"])
