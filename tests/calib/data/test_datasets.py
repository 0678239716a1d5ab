"""Each layout as its data set has it on disk, and the ways in which a folder can be wrong."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib.data.datasets import Dataset, LabelOptions, open_dataset
from calib.data.label_map import LabelMap
from engines.errors import DeployError
from engines.images.palettes import DATASETS, palette_for
from engines.images.read import read_image
from engines.spec import ModelSpec, Pixels

SIZE = (6, 8)


def _spec(classes: int | str, **changes: object) -> ModelSpec:
    names = DATASETS[classes].names if isinstance(classes, str) else tuple(f"class {k}" for k in range(classes))
    return ModelSpec("test", "", names, palette_for(names), **changes)  # type: ignore[arg-type]


def _image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)).save(path)
    return path


def _label(path: Path, *values: int) -> Path:
    """A label file whose first pixels are `values`; the rest repeats the last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.full(SIZE, values[-1], np.uint8)
    labels.ravel()[: len(values)] = values
    Image.fromarray(labels).save(path)
    return path


def _read(dataset: Dataset, count: int) -> list[int]:
    return dataset.labels(dataset.samples[0]).ravel()[:count].tolist()


def _plain(root: Path, *values: int, names: tuple[str, ...] = ("a",)) -> Path:
    for name in names:
        _image(root / "images" / f"{name}.jpg")
        _label(root / "labels" / f"{name}.png", *(values or (0,)))
    return root


@pytest.mark.parametrize("pair", [("images", "labels"), ("images", "annotations"), ("img_dir", "ann_dir")])
@pytest.mark.parametrize("place", ["", "val", "validation"])
def test_a_plain_tree(tmp_path: Path, pair: tuple[str, str], place: str) -> None:
    """Matched by stem, in natural order; split into parts below images/ or not at all."""
    for name, suffix in (("b10", "jpg"), ("b2", "png"), ("a", "webp")):
        _image(tmp_path / pair[0] / place / f"{name}.{suffix}")
        _label(tmp_path / pair[1] / place / f"{name}.png", 0, 4, 255)
    (tmp_path / pair[0] / place / "notes.txt").write_text("not an image")
    dataset = open_dataset(tmp_path, _spec(5))
    dataset.require_labels()
    assert [sample.image.name for sample in dataset.samples] == ["a.webp", "b2.png", "b10.jpg"]
    assert [sample.label.stem for sample in dataset.samples if sample.label] == ["a", "b2", "b10"]
    assert _read(dataset, 3) == [0, 4, 255]
    assert "plain" in str(dataset)
    assert "3 image(s)" in str(dataset)


def test_a_tree_for_each_split(tmp_path: Path) -> None:
    _plain(tmp_path / "train", names=("a", "b"))
    _plain(tmp_path / "val")
    assert len(open_dataset(tmp_path, _spec(5)).samples) == 1
    assert len(open_dataset(tmp_path, _spec(5), split="train").samples) == 2
    assert len(open_dataset(tmp_path / "train", _spec(5)).samples) == 2


def _cityscapes(root: Path, kinds: dict[str, tuple[int, ...]], frames: int = 2) -> Path:
    for city in ("bonn", "ulm"):
        for frame in range(frames):
            name = f"{city}_{frame:06}_000019"
            _image(root / "leftImg8bit" / "val" / city / f"{name}_leftImg8bit.png")
            for kind, values in kinds.items():
                _label(root / "gtFine" / "val" / city / f"{name}_gtFine_{kind}.png", *values)
            _image(root / "gtFine" / "val" / city / f"{name}_gtFine_color.png")
    return root


@pytest.mark.parametrize("inside", ["", "leftImg8bit", "leftImg8bit/val"])
def test_cityscapes_train_ids_are_preferred(tmp_path: Path, inside: str) -> None:
    root = _cityscapes(tmp_path, {"labelTrainIds": (0, 18, 255), "labelIds": (7, 33, 1)})
    dataset = open_dataset(root / inside, _spec("cityscapes"))
    assert len(dataset.samples) == 4
    assert dataset.samples[0].label is not None
    assert dataset.samples[0].label.name == "bonn_000000_000019_gtFine_labelTrainIds.png"
    assert _read(dataset, 3) == [0, 18, 255]


def test_cityscapes_label_ids_become_train_ids(tmp_path: Path) -> None:
    """The whole table, from the data set's documentation."""
    known = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
             28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    dataset = open_dataset(_cityscapes(tmp_path, {"labelIds": tuple(range(34))}), _spec("cityscapes"))
    assert _read(dataset, 34) == [known.get(number, 255) for number in range(34)]
    _label(dataset.samples[0].label, 34)  # type: ignore[arg-type]
    with pytest.raises(DeployError, match="got 34, which stand for none of the 19 classes"):
        dataset.labels(dataset.samples[0])
    with pytest.raises(DeployError, match="table of their own"):
        open_dataset(tmp_path, _spec("cityscapes"), options=LabelOptions(reduce_zero=True))


def test_cityscapes_with_half_its_train_ids_is_read_from_the_label_ids(tmp_path: Path) -> None:
    root = _cityscapes(tmp_path, {"labelTrainIds": (0,), "labelIds": (8,)})
    next((root / "gtFine").rglob("*_labelTrainIds.png")).unlink()
    dataset = open_dataset(root, _spec("cityscapes"))
    assert all("labelIds" in str(sample.label) for sample in dataset.samples)
    assert _read(dataset, 1) == [1]


def test_cityscapes_without_labels_says_where_they_belong(tmp_path: Path) -> None:
    dataset = open_dataset(_cityscapes(tmp_path, {}), _spec("cityscapes"))
    with pytest.raises(DeployError, match=r"4 of 4 images have no labels .*gtFine/val/CITY/\*_gtFine_labelTrainIds"):
        dataset.require_labels()


@pytest.mark.parametrize("inside", ["ADEChallengeData2016", ""])
def test_ade20k_counts_from_one(tmp_path: Path, inside: str) -> None:
    root = tmp_path / inside
    for part, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        _image(root / "images" / part / f"{name}.jpg")
        _label(root / "annotations" / part / f"{name}.png", 0, 1, 150)
    for path in {tmp_path, root}:
        dataset = open_dataset(path, _spec("ade20k"))
        assert (dataset.layout.name, dataset.samples[0].image.stem) == ("ade20k", "ADE_val_00000001")
        assert _read(dataset, 3) == [255, 0, 149]
    assert open_dataset(tmp_path, _spec("ade20k"), split="train").samples[0].image.stem == "ADE_train_00000001"
    with pytest.raises(DeployError, match="no split 'test', expected one of: training, validation"):
        open_dataset(tmp_path, _spec("ade20k"), split="test")
    with pytest.raises(DeployError, match=r"ade20k has 150 classes, got a model that is scored in 19.*--label-map"):
        open_dataset(tmp_path, _spec(19))


@pytest.mark.parametrize("inside", ["", "VOC2010", "VOCdevkit/VOC2010"])
def test_pascal_context_with_and_without_background(tmp_path: Path, inside: str) -> None:
    root = tmp_path / inside
    for name in ("2008_000002", "2008_000003", "2008_000007"):
        _image(root / "JPEGImages" / f"{name}.jpg")
        _label(root / "SegmentationClassContext" / f"{name}.png", 0, 1, 59)
    listing = root / "ImageSets" / "SegmentationContext" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("2008_000003\n2008_000002\n")
    dataset = open_dataset(tmp_path, _spec("pascal-context-59"))
    assert [sample.image.stem for sample in dataset.samples] == ["2008_000003", "2008_000002"]
    assert _read(dataset, 3) == [255, 0, 58]
    assert _read(open_dataset(tmp_path, _spec("pascal-context-60")), 3) == [0, 1, 59]
    with pytest.raises(DeployError, match="59 or 60 classes"):
        open_dataset(tmp_path, _spec(21))
    with pytest.raises(DeployError, match=r"no .*train\.txt"):
        open_dataset(tmp_path, _spec(59), split="train")
    listing.write_text("2008_000099\n")
    with pytest.raises(DeployError, match=r"val\.txt names .*2008_000099\.jpg"):
        open_dataset(tmp_path, _spec(59))


def test_coco_stuff(tmp_path: Path) -> None:
    for part in ("train2017", "val2017"):
        _image(tmp_path / "images" / part / "000000000139.jpg")
        _label(tmp_path / "annotations" / part / "000000000139.png", 181)
        _label(tmp_path / "annotations" / part / "000000000139_labelTrainIds.png", 0, 170, 255)
    dataset = open_dataset(tmp_path, _spec("coco-stuff"))
    assert (dataset.layout.name, dataset.samples[0].image.parent.name) == ("coco-stuff", "val2017")
    assert _read(dataset, 3) == [0, 170, 255]


def test_coco_stuff_as_published(tmp_path: Path) -> None:
    """Some of mmsegmentation's conversion table, around each gap and at both ends."""
    known = {0: 0, 10: 10, 12: 11, 24: 23, 26: 24, 27: 25, 30: 26, 43: 39, 45: 40, 64: 59, 66: 60, 69: 61, 71: 62,
             81: 72, 83: 73, 89: 79, 91: 80, 181: 170, 255: 255}  # fmt: skip
    _image(tmp_path / "images" / "val2017" / "000000000139.jpg")
    label = _label(tmp_path / "annotations" / "val2017" / "000000000139.png", *known)
    dataset = open_dataset(tmp_path, _spec("coco-stuff"))
    assert _read(dataset, len(known)) == list(known.values())
    _label(label, 11)
    with pytest.raises(DeployError, match="got 11, which stand for none of the 171"):
        dataset.labels(dataset.samples[0])


def test_the_original_camvid_tree(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        _image(tmp_path / part / "0016E5_07959.png")
        _label(tmp_path / f"{part}annot" / "0016E5_07959.png", 0, 10, 11)
    dataset = open_dataset(tmp_path, _spec(11), split="test")
    assert (dataset.layout.name, dataset.samples[0].image.parent.name) == ("camvid", "test")
    assert _read(dataset, 3) == [0, 10, 255]
    assert "11 ignored" in str(dataset)
    assert _read(open_dataset(tmp_path, _spec(12)), 3) == [0, 10, 11]  # a model that knows void as a class


def test_a_model_of_other_classes_is_not_scored_on_camvid(tmp_path: Path) -> None:
    """With 19 classes void would count as the person that has its number."""
    for folder in ("val", "valannot"):
        (tmp_path / folder).mkdir()
        Image.new("L", (4, 3), 11).save(tmp_path / folder / "a.png")
    with pytest.raises(
        DeployError, match=r"camvid has 11 or 12 classes, got a model that is scored in 19; give a --lab"
    ):
        open_dataset(tmp_path, _spec("cityscapes"))
    assert open_dataset(tmp_path, _spec("camvid")).classes


def test_void_of_a_plain_camvid_tree(tmp_path: Path) -> None:
    """By the names of the classes, by --ignore-label, or by a label map; otherwise an error that says so."""
    _plain(tmp_path, 0, 10, 11)
    assert _read(open_dataset(tmp_path, _spec("camvid")), 3) == [0, 10, 255]
    assert _read(open_dataset(tmp_path, _spec(11), options=LabelOptions((11,))), 3) == [0, 10, 255]
    assert _read(open_dataset(tmp_path, _spec(11), LabelMap(ignore=(11,))), 3) == [0, 10, 255]
    dataset = open_dataset(tmp_path, _spec(11))
    with pytest.raises(DeployError, match=r"a\.png: got 11, .* 11 classes, expected 0\.\.10 or 255.*--ignore-label"):
        dataset.labels(dataset.samples[0])


def test_the_model_says_how_a_plain_tree_is_labelled(tmp_path: Path) -> None:
    _plain(tmp_path, 0, 1, 3, 255)
    assert _read(open_dataset(tmp_path, _spec(3, reduce_zero_label=True)), 4) == [255, 0, 2, 255]
    assert _read(open_dataset(tmp_path, _spec(3), options=LabelOptions(reduce_zero=True)), 4) == [255, 0, 2, 255]
    assert _read(open_dataset(tmp_path, _spec(4, ignore_index=0)), 4) == [255, 1, 3, 255]
    assert "from 1" in str(open_dataset(tmp_path, _spec(3, reduce_zero_label=True)))
    overruled = open_dataset(tmp_path, _spec(4, reduce_zero_label=True), options=LabelOptions(reduce_zero=False))
    assert _read(overruled, 4) == [0, 1, 3, 255]


def test_a_label_map_translates_labels_after_the_layout_has(tmp_path: Path) -> None:
    root = _cityscapes(tmp_path, {"labelIds": (7, 8, 11, 12, 0)})
    label_map = LabelMap(("ground", "building"), None, ((0, 0), (1, 0), (2, 1)), ignore=(3,))
    dataset = open_dataset(root, _spec("cityscapes"), label_map)
    assert dataset.classes == ("ground", "building")
    assert _read(dataset, 5) == [0, 0, 1, 255, 255]
    _label(dataset.samples[0].label, 13)  # type: ignore[arg-type]
    with pytest.raises(DeployError, match="got 13, which stand for none of the 2 classes"):
        dataset.labels(dataset.samples[0])


@pytest.mark.parametrize("folder", ["", "images"])
def test_a_folder_of_images_is_a_set_without_labels(tmp_path: Path, folder: str) -> None:
    _image(tmp_path / folder / "a.jpg")
    dataset = open_dataset(tmp_path)
    assert [sample.label for sample in dataset.samples] == [None]
    assert "1 image(s) without labels" in str(dataset)
    with pytest.raises(DeployError, match=r"1 of 1 images have no labels \(the first is a\.jpg\).*labels/NAME\.png"):
        dataset.require_labels()


def test_one_missing_label_is_named(tmp_path: Path) -> None:
    _plain(tmp_path, names=("a", "b"))
    (tmp_path / "labels" / "b.png").unlink()
    with pytest.raises(DeployError, match=r"1 of 2 images have no labels \(the first is b\.jpg\)"):
        open_dataset(tmp_path, _spec(5)).require_labels()


def test_two_images_cannot_share_a_label(tmp_path: Path) -> None:
    _plain(tmp_path)
    _image(tmp_path / "images" / "a.png")
    with pytest.raises(DeployError, match=r"a\.jpg and a\.png share a label"):
        open_dataset(tmp_path)
    (tmp_path / "images" / "a.png").unlink()
    _label(tmp_path / "labels" / "a.tif", 0)
    with pytest.raises(DeployError, match=r"a\.png and a\.tif label the same image"):
        open_dataset(tmp_path)


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="nothing there"):
        open_dataset(tmp_path / "none")
    with pytest.raises(DeployError, match="a file"):
        open_dataset(_image(tmp_path / "a.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeployError, match="got no images"):
        open_dataset(tmp_path / "empty")
    (tmp_path / "tree" / "images").mkdir(parents=True)
    (tmp_path / "tree" / "labels").mkdir()
    with pytest.raises(DeployError, match="no split 'val', expected one of: none"):
        open_dataset(tmp_path / "tree")


def test_a_label_of_another_size_or_kind_names_its_file(tmp_path: Path) -> None:
    dataset = open_dataset(_plain(tmp_path), _spec(5))
    with pytest.raises(DeployError, match=r"a\.png: got 8x6, expected 9x6 as a\.jpg"):
        dataset.labels(dataset.samples[0], (6, 9))
    _image(tmp_path / "labels" / "a.png")
    with pytest.raises(DeployError, match=r"a\.png: got a RGB image"):
        dataset.labels(dataset.samples[0])
    (tmp_path / "labels" / "a.png").write_bytes(b"")
    with pytest.raises(DeployError, match=r"a\.png: an empty file"):
        dataset.labels(dataset.samples[0])


def test_the_digest_is_over_names_and_contents_wherever_the_set_lies(tmp_path: Path) -> None:
    root = _plain(tmp_path / "set", names=("a", "b"))
    digest = open_dataset(root).digest
    expected = hashlib.sha256()
    for name in ("images/a.jpg", "labels/a.png", "images/b.jpg", "labels/b.png"):
        expected.update(f"{name}\0{hashlib.sha256((root / name).read_bytes()).hexdigest()}\0".encode())
    assert digest == expected.hexdigest()
    assert open_dataset(Path(shutil.copytree(root, tmp_path / "moved"))).digest == digest
    assert open_dataset(root).limited(1).digest != digest
    _label(root / "labels" / "b.png", 1)
    assert open_dataset(root).digest != digest


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))]
)
def test_a_limit_is_spread_over_the_set(tmp_path: Path, count: int, expected: list[int]) -> None:
    _plain(tmp_path, names=tuple(str(index) for index in range(10)))
    dataset = open_dataset(tmp_path).limited(count)
    assert [int(sample.image.stem) for sample in dataset.samples] == expected
    assert open_dataset(tmp_path).limited(None) == open_dataset(tmp_path)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_label_on_the_stored_pixels_of_a_turned_photograph(tmp_path: Path, orientation: int) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20), (9, 90, 200)).save(tmp_path / "images" / "a.jpg", exif=exif)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "labels" / "a.png")
    dataset = open_dataset(tmp_path, _spec(2))
    said = "by 180 degrees" if orientation == 3 else "by 90 degrees"
    assert said in dataset.turned()
    assert "--as-stored" in dataset.turned()
    size = read_image(dataset.samples[0].image).shape[:2]
    if orientation == 6:
        with pytest.raises(DeployError, match=r"orientation \(6\) turns the photograph by 90 degrees.*--as-stored"):
            dataset.labels(dataset.samples[0], size)
    as_stored = open_dataset(tmp_path, _spec(2), options=LabelOptions(as_stored=True))
    assert as_stored.turned() == ""
    size = read_image(as_stored.samples[0].image, wanted=Pixels(upright=False)).shape[:2]
    assert as_stored.labels(as_stored.samples[0], size).shape == (20, 30)
