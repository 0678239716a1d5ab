"""The data of a comparison, one frame at a time: what the model sees, and the truth where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from calib.data.datasets import Dataset
from calib.data.label_map import LabelMap
from engines.contract import UInt8
from engines.errors import DeployError
from engines.images.read import MAX_PIXELS, Admit, read_picture
from engines.images.resize import resize_image, resize_labels
from engines.spec import ModelSpec
from engines.stream.ahead import read_ahead


@dataclass(frozen=True)
class Frame:
    """image: (H, W, 3) uint8 RGB, as the model sees it.  truth: (h, w) uint8 in the data's classes, or None."""

    name: str
    image: UInt8
    truth: UInt8 | None


class Frames:
    """The images of `dataset`, read when asked for; scored where each has a label, only compared where none has.

    Raises DeployError when some images have labels and others do not: an mIoU of a part would pass for that of all.
    """

    def __init__(self, dataset: Dataset, spec: ModelSpec, max_pixels: int = MAX_PIXELS) -> None:
        self._max_pixels, self._pixels = max_pixels, spec.pixels
        self._dataset = dataset
        self._map = dataset.label_map or LabelMap()
        self.labelled = any(sample.label is not None for sample in dataset.samples)
        if self.labelled:
            dataset.require_labels()
        self.classes = dataset.classes if self.labelled else ()
        self._table = self._map.prediction_table(spec.classes) if self.labelled else None

    def check_labels(self) -> None:
        """Read every label file, so that a bad one is found before hours of building.  Raises DeployError."""
        for sample in self._dataset.samples if self.labelled else ():
            self._dataset.labels(sample)

    def __len__(self) -> int:
        return len(self._dataset.samples)

    def __getitem__(self, index: int) -> Frame:
        return self._read(index, lambda pixels: None)

    def ahead(self) -> Iterator[Frame]:
        """All, in order, the next ones read while the caller works: not where time is measured."""
        return read_ahead(range(len(self)), self._read)

    def _read(self, index: int, admit: Admit) -> Frame:
        sample = self._dataset.samples[index]
        pixels = replace(self._pixels, upright=not self._dataset.as_stored)
        image = read_picture(sample.image, self._max_pixels, pixels, admit).pixels
        truth = self._dataset.labels(sample, image.shape[:2]) if self.labelled else None
        if self._map.image_size is not None:
            image = resize_image(image, self._map.image_size)
        return Frame(sample.image.name, image, truth)

    def predicted(self, labels: UInt8, size: tuple[int, int]) -> UInt8:
        """The model's labels (H, W) as the data's classes, brought to `size` (h, w) by the nearest pixel."""
        if self._table is None:
            raise DeployError("labels: got none in this data set, expected labels to score against")
        return resize_labels(np.take(self._table, labels), size)
