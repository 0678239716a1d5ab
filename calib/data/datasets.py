"""A data set on disk: images, and labels as the classes that they are scored in.

A *label* becomes a class in four steps: the file's number is decoded as the layout says (layouts.py), numbers to ignore
become 255, the label map's "label" is applied if there is one, and whatever is then neither a class nor 255 is
an error that names the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.data.colours import ColourTable, read_colours
from calib.data.label_map import LabelMap
from calib.data.layouts import DatasetLayout, Sample, find_layout
from calib.data.orientation import turned, turned_or_resized
from engines.contract import UInt8
from engines.errors import DeployError
from engines.files import file_sha256
from engines.images.palettes import DATASETS
from engines.images.read import MAX_PIXELS, read_label_colours, read_labels
from engines.spec import IGNORE_LABEL, ModelSpec

_UNKNOWN = -1

# Cityscapes' own table: id of each train id (cityscapesscripts, helpers/labels.py); all others are ignored.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # of the 182 ids of COCO-Stuff, those that never occur
_CAMVID_VOID = 11


@dataclass(frozen=True)
class LabelOptions:
    """What the user says about the numbers in the label files.

    ignore: numbers, as in the files, that are not scored.
    reduce_zero: 0 is ignore and the rest minus one; None does as the layout says, in a plain tree as the model says.
    colours: what `read_colours` takes, where colours stand for classes; then `ignore` speaks of the classes' numbers.
    as_stored: labels were drawn on photographs as they are stored, not as their EXIF orientation turns them.
    """

    ignore: tuple[int, ...] = ()
    reduce_zero: bool | None = None
    colours: str | None = None
    as_stored: bool = False


@dataclass(frozen=True)
class Dataset:
    """Images with labels, or without.

    classes: what labels are numbers of; () where no model was given.
    table: 256 entries, the class of each number in a label file: 0..K-1, 255 for ignore, -1 for an error.
    notes: how the numbers are read, for people.
    colours: what makes numbers of a label file's colours; None where it holds numbers.
    told_255: whether the user has said what 255 means.  as_stored: see `LabelOptions`.
    """

    layout: DatasetLayout
    samples: tuple[Sample, ...]
    classes: tuple[str, ...] = ()
    table: tuple[int, ...] = ()
    label_map: LabelMap | None = None
    notes: tuple[str, ...] = ()
    colours: ColourTable | None = None
    told_255: bool = False
    as_stored: bool = False

    def limited(self, count: int | None) -> Dataset:
        """`count` of the samples, spread evenly over the set, in order; all where there are not more, or for None."""
        if count is None or count >= len(self.samples):
            return self
        if count < 1:
            raise DeployError(f"limit: got {count} images, expected 1 or more")
        chosen = tuple(self.samples[index * len(self.samples) // count] for index in range(count))
        return replace(self, samples=chosen)

    def without(self, digests: Collection[str]) -> Dataset:
        """The samples whose image is none of those, told by the sha256 of its bytes.  Raises DeployError."""
        if not digests:
            return self
        return replace(self, samples=tuple(each for each in self.samples if _sha256(each.image) not in digests))

    def halves(self, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Divided by image, at random: copies of one stay together.  The second is empty where there is only one."""
        digests = [_sha256(sample.image) for sample in self.samples]
        different = sorted(set(digests))
        order = np.random.default_rng([seed, 0xDA7A]).permutation(len(different))
        first = {different[index] for index in order[: (len(different) + 1) // 2]}
        sides = [(digest in first, sample) for digest, sample in zip(digests, self.samples, strict=True)]
        one, other = (tuple(sample for side, sample in sides if side is which) for which in (True, False))
        return replace(self, samples=one), replace(self, samples=other)

    def turned(self) -> str:
        """What to hear about photographs with labels that their EXIF orientation turns; "" where none is."""
        return "" if self.as_stored else turned([each.image for each in self.samples if each.label is not None])

    def require_labels(self) -> None:
        """Raise DeployError unless every image has a label file."""
        bare = [sample.image for sample in self.samples if sample.label is None]
        if bare:
            raise DeployError(
                f"data set {self.layout.root}: {len(bare)} of {len(self.samples)} images have no labels (the first is "
                f"{bare[0].name}), expected a label file for each: {self.layout.wanted}"
            )
        self._require_more_than_foreground()

    def _require_more_than_foreground(self) -> None:
        """Raise DeployError where all files hold only 0 and 255, and nobody has said that 255 is to be ignored.

        Reads files until one holds something else: the first, of labels.
        """
        if self.colours is not None or self.told_255 or not self.table:
            return
        found = False
        for sample in self.samples:
            assert sample.label is not None
            values = read_labels(sample.label)
            if ((values != 0) & (values != IGNORE_LABEL)).any():
                return
            found = found or bool((values == IGNORE_LABEL).any())
        if found:
            raise DeployError(
                f"data set {self.layout.root}: got only 0 and 255 in all {len(self.samples)} label file(s), and 255 is "
                "not scored; of masks whose foreground is 255 give --label-map binary (0 is class 0, 255 is class 1), "
                "and where 255 is to be ignored --ignore-label 255"
            )

    def labels(self, sample: Sample, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS) -> UInt8:
        """Labels (H, W) uint8 of one sample: 0..K-1, or 255.  size: the (H, W) they must have.

        Raises DeployError on an unreadable file, another size, and numbers that stand for no class.
        """
        if sample.label is None or not self.table:
            raise DeployError(f"labels of {sample.image}: got none, expected a label file, and a model's classes")
        if self.colours is None:
            values = read_labels(sample.label, max_pixels)
        else:
            values = self.colours.read(read_label_colours(sample.label, max_pixels), sample.label)
        if size is not None and values.shape != size:
            raise DeployError(
                f"labels {sample.label}: got {values.shape[1]}x{values.shape[0]}, expected {size[1]}x{size[0]} as "
                f"{sample.image.name}; {turned_or_resized(sample.image, values.shape, size)}"
            )
        table = np.array(self.table, np.int16)
        present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
        unknown = present[table[present] == _UNKNOWN].tolist()
        if unknown:
            raise DeployError(
                f"labels {sample.label}: got {', '.join(map(str, unknown))}, which stand for none of the "
                f"{len(self.classes)} classes, expected 0..{len(self.classes) - 1} or {IGNORE_LABEL} once read as "
                f"{self.notes[0]}; to leave a number out give --ignore-label N, to translate numbers a --label-map"
            )
        return np.take(table.astype(np.uint8), values)

    @cached_property
    def digest(self) -> str:
        """sha256 over names (relative to the root) and contents of the images and labels, in order.

        Raises DeployError when a file cannot be read.
        """
        total = hashlib.sha256()
        for sample in self.samples:
            for path in (sample.image, sample.label):
                if path is not None:
                    total.update(f"{path.relative_to(self.layout.root).as_posix()}\0".encode())
                    total.update(f"{_sha256(path)}\0".encode())
        return total.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A description; the files themselves stay on disk."""
        return {
            "path": str(self.layout.root),
            "layout": self.layout.name,
            "split": self.layout.split or None,
            "images": len(self.samples),
            "labelled": sum(sample.label is not None for sample in self.samples),
            "sha256": self.digest,
            "labels": list(self.notes),
            "label_map": None if self.label_map is None else self.label_map.to_json(),
        }

    def __str__(self) -> str:
        split = f" {self.layout.split}" if self.layout.split else ""
        labelled = all(sample.label is not None for sample in self.samples)
        notes = f"; labels {', '.join(self.notes)}" if self.notes and labelled else ""
        return (
            f"{self.layout.root} ({self.layout.name}{split}): {len(self.samples)} image(s)"
            f"{'' if labelled else ' without labels'}{notes}"
        )


def open_dataset(
    path: Path,
    spec: ModelSpec | None = None,
    label_map: LabelMap | None = None,
    split: str = "val",
    options: LabelOptions | None = None,
) -> Dataset:
    """Recognise the data set at `path` and, given the model's `spec`, how its labels are read; decodes no image.

    Without labels it is still a data set, for calibration.  A label map's classes replace the model's.
    Raises DeployError when nothing is recognised, the split is missing, or the classes are another data set's.
    """
    layout = find_layout(Path(path), split)
    if spec is None:
        return Dataset(layout, layout.samples)
    options = options or LabelOptions()
    classes = spec.classes if label_map is None or label_map.classes is None else label_map.classes
    if options.colours is not None:
        return _coloured(layout, spec, classes, label_map, options)
    if layout.counts and len(classes) not in layout.counts and not (label_map and label_map.label):
        raise DeployError(
            f"data set {layout.root}: {layout.name} has {' or '.join(map(str, layout.counts))} classes, got a model "
            f"that is scored in {len(classes)}; give a --label-map that says which class counts as which"
        )
    table, notes = _table(layout, spec, classes, label_map, options)
    return Dataset(
        layout,
        layout.samples,
        classes=classes,
        table=tuple(int(v) for v in table),
        label_map=label_map,
        notes=tuple(notes),
        told_255=IGNORE_LABEL in options.ignore or (label_map is not None and IGNORE_LABEL in dict(label_map.label)),
        as_stored=options.as_stored,
    )


def _coloured(
    layout: DatasetLayout, spec: ModelSpec, classes: tuple[str, ...], label_map: LabelMap | None, options: LabelOptions
) -> Dataset:
    """As `open_dataset`, of label files whose colours stand for classes."""
    assert options.colours is not None
    if options.reduce_zero is not None:
        raise DeployError(
            "--label-colors: got --reduce-zero-label or --no-reduce-zero-label too, which speak of numbers in label "
            "files; leave them out"
        )
    colours = read_colours(options.colours, spec).numbers(classes, label_map)
    table = np.full(256, _UNKNOWN, np.int16)
    table[: len(classes)] = np.arange(len(classes))
    table[[IGNORE_LABEL, *options.ignore]] = IGNORE_LABEL
    ignored = [f"{', '.join(map(str, sorted(options.ignore)))} ignored"] if options.ignore else []
    return Dataset(
        layout, layout.samples, classes=classes, table=tuple(int(v) for v in table), label_map=label_map,
        notes=(f"colours of {colours.source}", *ignored), colours=colours,
        as_stored=options.as_stored,
    )  # fmt: skip


def _table(
    layout: DatasetLayout, spec: ModelSpec, classes: Sequence[str], label_map: LabelMap | None, options: LabelOptions
) -> tuple[NDArray[np.int16], list[str]]:
    encoding = layout.encoding
    if encoding == "pascal":
        encoding = "reduce zero" if len(classes) == 59 else "as is"
    elif layout.name == "plain" and spec.reduce_zero_label and label_map is None:
        encoding = "reduce zero"
    if options.reduce_zero is not None:
        if encoding in ("labelIds", "coco ids"):
            raise DeployError(
                f"data set {layout.root}: got the ids of {layout.name}, which have a table of their own; "
                "leave out --reduce-zero-label and --no-reduce-zero-label"
            )
        encoding = "reduce zero" if options.reduce_zero else "as is"
    own, note = _decode(encoding)
    notes = [note]
    ignore = set(options.ignore)
    ignore |= {number for number in layout.void if label_map is not None or number >= len(classes)}
    if layout.name == "plain" and label_map is None:
        ignore |= set(np.flatnonzero(own == spec.ignore_index).tolist())
    if [name.lower() for name in classes] == list(DATASETS["camvid"].names) and encoding == "as is":
        ignore.add(_CAMVID_VOID)
    table = own.copy()
    if label_map is not None:
        for number, target in label_map.label:
            table[own == number] = target
        ignore |= set(np.flatnonzero(np.isin(own, label_map.ignore)).tolist())
        notes += ["through the label map"] if label_map.label else []
    ignored = sorted(number for number in ignore if own[number] != IGNORE_LABEL)
    table[ignored] = IGNORE_LABEL
    table[(table >= len(classes)) & (table != IGNORE_LABEL)] = _UNKNOWN
    notes += [f"{', '.join(map(str, ignored))} ignored"] if ignored else []
    return table, notes


def _decode(encoding: str) -> tuple[NDArray[np.int16], str]:
    """(256,): the data set's own class of each number in its files, and that in words."""
    numbers = np.arange(256, dtype=np.int16)
    if encoding == "labelIds":
        own = np.full(256, _UNKNOWN, np.int16)
        own[: max(_CITYSCAPES_IDS) + 1] = IGNORE_LABEL
        own[list(_CITYSCAPES_IDS)] = np.arange(len(_CITYSCAPES_IDS))
        own[IGNORE_LABEL] = IGNORE_LABEL
        return own, "labelIds, translated to train ids"
    if encoding == "coco ids":
        own = np.full(256, _UNKNOWN, np.int16)
        used = np.setdiff1d(numbers[:182], _COCO_GAPS)
        own[used] = np.arange(len(used))
        own[IGNORE_LABEL] = IGNORE_LABEL
        return own, "published ids, translated to train ids"
    if encoding == "reduce zero":
        return np.where(numbers == 0, IGNORE_LABEL, np.where(numbers == IGNORE_LABEL, 255, numbers - 1)), (
            "class numbers from 1 (0 is ignore)"
        )
    return numbers, "class numbers from 0"


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise DeployError(f"data set: {path} cannot be read: {error.strerror}") from error
