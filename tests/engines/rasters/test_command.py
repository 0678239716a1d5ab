"""`run` with rasters among its inputs, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploy
from engines.rasters import run as runs
from tests.engines.rasters.maps import read, write

rasterio = pytest.importorskip("rasterio", reason="rasterio, which reads rasters, is not installed")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Photographs, a raster on a map, and a TIFF that is only a picture."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "picture.tif"):
        Image.fromarray(rng.integers(0, 256, (70, 100, 3), np.uint8)).save(folder / name)
    write(folder / "map.tif", rng.integers(0, 256, (300, 200, 3), np.uint8))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rasters_and_pictures_in_one_folder(
    tiny_bundle: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["run", str(tiny_bundle), str(inputs), "-o", str(out), "--confidence"]
    assert deploy.main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(entry["width"], entry["height"], entry["complete"]) for entry in result["rasters"]] == [(200, 300, True)]
    assert len(result["images"]) == 3
    masks = [f"{name}{kind}" for name in ("a", "b", "picture") for kind in (".confidence.png", ".png")]
    assert names(out) == sorted([*masks, "map.confidence.tif", "map.tif"])
    assert deploy.main([*argv, "--skip-existing"]) == 0
    assert "4 image(s) left out: their masks are there" in capsys.readouterr().out
    left_out = 0  # of which every shard says its own
    for shard in ("1/2", "2/2"):
        assert deploy.main([*argv, "--skip-existing", "--shard", shard, "--json"]) == 0
        left_out += json.loads(capsys.readouterr().out)["existing"]
    assert left_out == 4


def test_a_plain_tiff_that_is_too_large_to_decode_is_read_by_windows(
    tiny_bundle: Path, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = ["run", str(tiny_bundle), str(inputs / "picture.tif"), "-o", str(out)]
    assert deploy.main(argv) == 0
    assert deploy.main([*argv, "--max-pixels", "6000"]) == 0
    assert np.array_equal(read(out / "picture.tif"), np.asarray(Image.open(out / "picture.png")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--window", "0,0,10,10"], "none of the inputs is a raster"),
        (["--window", "0,0,0,10"], "expected X,Y,W,H"),
        (["--bbox", "3,0,1,1"], "west < east"),
        (["--shard", "3/2"], "expected I/N"),
        (["--polygons", "shp"], "invalid choice"),
    ],
)
def test_bad_words_are_one_line_and_exit_2(
    tiny_bundle: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    argv = ["run", str(tiny_bundle), str(inputs / "a.png"), "-o", str(tmp_path / "out"), *words]
    try:
        code = deploy.main(argv)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_damaged_raster_does_not_stop_the_others(
    tiny_bundle: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And leaves nothing but the parts that were finished."""
    whole = (inputs / "map.tif").read_bytes()
    (inputs / "cut.tif").write_bytes(whole[: len(whole) - 40_000])
    out = tmp_path / "out"
    assert deploy.main(["run", str(tiny_bundle), str(inputs / "map.tif"), str(inputs / "cut.tif"), "-o", str(out)]) == 2
    text = capsys.readouterr().out
    assert "skipped" in text
    assert "cut.tif: GDAL says:" in text
    assert {"map.tif"} <= set(names(out)) <= {"map.tif", ".cut.tif.parts"}


def test_what_is_left_out_when_its_labels_are_there_has_all_its_files(
    tiny_bundle: Path, inputs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pyogrio", reason="pyogrio, which writes polygons, is not installed")
    out = tmp_path / "out"
    (out / "map.gpkg").mkdir(parents=True)
    words = ["run", str(tiny_bundle), str(inputs / "map.tif"), "-o", str(out), "--polygons", "gpkg", "--skip-existing"]
    assert deploy.main(words) == 2
    (out / "map.gpkg").rmdir()
    assert deploy.main(words) == 0
    assert names(out) == ["map.gpkg", "map.tif"]


def test_an_input_is_not_overwritten(
    tiny_bundle: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    before = (inputs / "map.tif").read_bytes()
    assert deploy.main(["run", str(tiny_bundle), str(inputs / "map.tif"), "-o", str(inputs)]) == 2
    assert "would overwrite the input" in capsys.readouterr().out
    assert (inputs / "map.tif").read_bytes() == before


def test_shards_together_are_the_whole(
    tiny_bundle: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In any order: each image once, and a raster by its rows, put together by the last one."""
    monkeypatch.setattr(runs, "ROWS", 128)
    for number in range(8):
        Image.new("RGB", (30, 20), (number * 20, 90, 200 - number * 20)).save(inputs / f"more-{number}.png")
    assert deploy.main(["run", str(tiny_bundle), str(inputs), "-o", str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    counts = []
    for index in (2, 3, 1):
        argv = ["run", str(tiny_bundle), str(inputs), "-o", str(tmp_path / "parts"), "--shard", f"{index}/3", "--json"]
        assert deploy.main(argv) == 0
        result = json.loads(capsys.readouterr().out)
        counts.append(len(result["images"]))
        assert result["rasters"][0]["complete"] == (index == 1)
    assert sum(counts) == 11
    assert max(counts) < 11
    assert names(tmp_path / "parts") == names(tmp_path / "whole")
    for name in names(tmp_path / "whole"):
        one, other = (Image.open(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert np.array_equal(np.asarray(one), np.asarray(other)), name
