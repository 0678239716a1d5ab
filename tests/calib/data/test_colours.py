"""Colour-coded label files: read as the classes that their palette says, or refused with what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib.data.colours import read_colours
from calib.data.datasets import Dataset, LabelOptions, open_dataset
from calib.data.label_map import LabelMap
from engines.errors import DeployError
from engines.images.palettes import DATASETS, palette_for
from engines.spec import RGB, ModelSpec

NAMES = ("sky", "Traffic Light", "road")
SPEC = ModelSpec("test", "", NAMES, ((1, 2, 3), (250, 170, 30), (128, 64, 128)))


def _tree(root: Path, *colours: RGB, mode: str = "RGB") -> Path:
    """One image; its label file has each of `colours` in a column."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    pixels = np.array([colours] * 4, np.uint8)
    Image.fromarray(np.zeros_like(pixels)).save(root / "images" / "a.png")
    Image.fromarray(pixels).convert(mode, palette=Image.Palette.ADAPTIVE).save(root / "labels" / "a.png")
    return root


def _open(root: Path, colours: object, label_map: LabelMap | None = None, spec: ModelSpec = SPEC) -> Dataset:
    return open_dataset(root, spec, label_map=label_map, options=LabelOptions(colours=str(colours)))


def _read(root: Path, colours: object, label_map: LabelMap | None = None, spec: ModelSpec = SPEC) -> list[int]:
    dataset = _open(root, colours, label_map, spec)
    dataset.require_labels()
    return dataset.labels(dataset.samples[0])[0].tolist()


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "palette.txt"
    path.write_text(text)
    return path


CVAT = (
    "# label:color_rgb:parts:actions\nignore:0,0,0::\nroad:128,64,128::\nsky:70,130,180::\ntraffic_light:250,170,30::\n"
)
LINES = "\nROAD 128 64 128\nsky\t70\t130\t180\ntraffic light 250, 170, 30\nignore 0 0 0\nIgnore 9 9 9\n"


@pytest.mark.parametrize("text", [CVAT, LINES, f"\ufeff{CVAT}", LINES.replace("\n", "\r\n")])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_file_of_names_and_colours(tmp_path: Path, text: str, mode: str) -> None:
    root = _tree(tmp_path / "set", (70, 130, 180), (250, 170, 30), (128, 64, 128), (0, 0, 0), mode=mode)
    assert _read(root, _file(tmp_path, text)) == [0, 1, 2, 255]


@pytest.mark.parametrize("name", ["bundle", "model"])
def test_the_models_own_palette(tmp_path: Path, name: str) -> None:
    root = _tree(tmp_path / "set", *SPEC.palette, (0, 0, 0))
    assert _read(root, name) == [0, 1, 2, 255]


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_class_of_a_known_data_set(tmp_path: Path, name: str) -> None:
    """Also where the model spells them otherwise."""
    known = DATASETS[name]
    own = [k for k, colour in enumerate(known.palette) if known.palette.count(colour) == 1]
    root = _tree(tmp_path / "set", *(known.palette[k] for k in own))
    for classes in (known.names, tuple(f"class_{k}" for k in range(len(known.names)))):
        spec = ModelSpec("test", "", classes, palette_for(classes))
        assert _read(root, name, spec=spec) == own


def test_a_colour_of_two_classes_is_neither(tmp_path: Path) -> None:
    """As published, ADE20K's road and skyscraper look the same."""
    known = DATASETS["ade20k"]
    root = _tree(tmp_path / "set", known.palette[0], known.palette[known.names.index("skyscraper")])
    with pytest.raises(DeployError, match=r"140,140,140 in 4 pixel\(s\), .* which road and skyscraper share there"):
        _read(root, "ade20k", spec=ModelSpec("test", "", known.names, known.palette))


def test_an_unknown_colour_is_named_with_its_count(tmp_path: Path) -> None:
    root = _tree(tmp_path / "set", (70, 130, 180), (12, 34, 56), (12, 34, 56), (12, 34, 57))
    with pytest.raises(
        DeployError, match=r"a\.png: got the colour 12,34,56 in 8 pixel\(s\) and 1 other unknown colour"
    ):
        _read(root, _file(tmp_path, CVAT))


def test_a_label_map_translates_names_that_are_no_classes(tmp_path: Path) -> None:
    palette = _file(tmp_path, "Cloud 1 1 1\nLane 2 2 2\nignore 4 4 4\nKerb 3 3 3\n")
    root = _tree(tmp_path / "set", (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4))
    label_map = LabelMap(label=((0, 0), (1, 2), (2, 255)))
    assert _read(root, palette, label_map) == [0, 2, 255, 255]
    with pytest.raises(DeployError, match="got 'Kerb', for which the label map names none of the 2 classes; add 2"):
        _read(root, palette, LabelMap(classes=("a", "b"), prediction=(), label=((0, 0),)))
    with pytest.raises(DeployError, match="got the name 'Cloud', which is none of the 3 classes that are scored"):
        _read(root, palette)


def test_classes_can_be_ignored(tmp_path: Path) -> None:
    root = _tree(tmp_path / "set", *SPEC.palette)
    dataset = open_dataset(root, SPEC, options=LabelOptions((1,), colours="bundle"))
    assert dataset.labels(dataset.samples[0])[0].tolist() == [0, 255, 2]
    assert dataset.notes == ("colours of bundle", "1 ignored")
    with pytest.raises(DeployError, match="speak of numbers in label files"):
        open_dataset(root, SPEC, options=LabelOptions(reduce_zero=True, colours="bundle"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road 1 2 3\nsky 1 2\n", r"palette\.txt:2: got 'sky 1 2', expected a name and three numbers"),
        ("road 1 2 256\n", "three numbers 0..255"),
        ("road:1,2,3\nsky:1,2,3:x:y\n", "road and sky have the same colour 1,2,3"),
        ("# nothing\n", "got no line"),
    ],
)
def test_a_palette_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DeployError, match=message):
        read_colours(str(_file(tmp_path, text)), SPEC)


def test_where_there_is_no_palette(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="mars: no such file, expected one, 'bundle' or one of: cityscapes, ade20k"):
        read_colours("mars", SPEC)
    with pytest.raises(DeployError, match="cannot be read"):
        read_colours(str(tmp_path), SPEC)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(DeployError, match="not a text file"):
        read_colours(str(tmp_path / "binary"), SPEC)
    root = _tree(tmp_path / "set", *SPEC.palette)
    dataset = open_dataset(root, SPEC)
    with pytest.raises(DeployError, match=r"got a RGB image, expected .* say for which with --label-colors"):
        dataset.labels(dataset.samples[0])
    Image.fromarray(np.zeros((4, 3, 3), np.uint8)).save(root / "labels" / "a.png", format="JPEG")
    with pytest.raises(DeployError, match="JPEG, which does not keep colours"):
        _read(root, "bundle")


def _masks(root: Path, *columns: tuple[int, ...]) -> Path:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for index, values in enumerate(columns):
        Image.fromarray(np.zeros((4, len(values), 3), np.uint8)).save(root / "images" / f"{index}.png")
        Image.fromarray(np.array([values] * 4, np.uint8)).save(root / "labels" / f"{index}.png")
    return root


def test_masks_of_0_and_255_are_named(tmp_path: Path) -> None:
    """Their foreground would not be scored; once it is said what 255 is, they are read."""
    root = _masks(tmp_path / "set", (0, 0), (0, 255), (255, 255))
    with pytest.raises(
        DeployError, match=r"only 0 and 255 in all 3 label file.*--label-map binary.*--ignore-label 255"
    ):
        open_dataset(root, SPEC).require_labels()
    binary = open_dataset(root, SPEC, label_map=LabelMap(label=((255, 1),)))
    binary.require_labels()
    assert binary.labels(binary.samples[1])[0].tolist() == [0, 1]
    ignoring = open_dataset(root, SPEC, options=LabelOptions((255,)))
    ignoring.require_labels()
    assert ignoring.labels(ignoring.samples[1])[0].tolist() == [0, 255]
    for index, columns in enumerate([((0, 255), (0, 1)), ((0, 0), (0, 0)), ((1, 255),)]):
        open_dataset(_masks(tmp_path / str(index), *columns), SPEC).require_labels()
