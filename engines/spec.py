"""What a model needs around it to be run correctly: preprocessing, classes, and the meaning of its output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from engines.errors import DeployError
from engines.records import read_record

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, on the 0..255 scale
IMAGENET_STD = (58.395, 57.12, 57.375)
IGNORE_LABEL = 255
MAX_BANDS = 64  # of an image
MAX_CLASSES = 255  # labels are uint8 and 255 means "ignore"

BACKGROUND, BLACK = "background", (0, 0, 0)  # what a network of one channel leaves unsaid
THRESHOLD = 0.5  # of its probability

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Pixels:
    """What of an image file a network takes, as bytes.

    count: channels, 1 to 64.  bands: which of the file's, counted from 1; () the first, or all.
    scale: the values of the file that become 0 and 255; None takes the whole range of 8 or 16 bit.
    upright: whether a photograph is turned as its EXIF orientation says.
    """

    count: int = 3
    bands: tuple[int, ...] = ()
    scale: tuple[float, float] | None = None
    upright: bool = True

    def __post_init__(self) -> None:
        if self.bands and (len(self.bands) != self.count or min(self.bands) < 1):
            raise DeployError(
                f"--bands {','.join(map(str, self.bands))}: got {len(self.bands)}, expected {self.count}, as many as "
                "the network takes, counted from 1"
            )
        if self.scale is not None and not -math.inf < self.scale[0] < self.scale[1] < math.inf:
            raise DeployError(f"--scale {self.scale[0]:g}..{self.scale[1]:g}: expected LOW..HIGH, the second larger")

    def but(self, bands: tuple[int, ...] | None, scale: tuple[float, float] | None) -> Pixels:
        """The same, with what the user asked for in place of its own."""
        return replace(self, bands=self.bands if bands is None else bands, scale=scale or self.scale)


COLOUR = Pixels()


OPENCV = "opencv-bilinear"  # of the two nearest pixels along each axis: mmsegmentation's
FILTERS = (OPENCV, *(f"pillow-{name}" for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")))


@dataclass(frozen=True)
class ModelSpec:
    """The contract between a trained network and the runtime; travels in the bundle's manifest.

    architecture, variant: names such as ``segformer`` and ``b0``; free text for a user's own model.
    classes, palette: one name and one RGB colour for each label, 2 to 255 of them: for each of the K output channels.
    threshold: None, or of a network with one channel: label 1 is where the sigmoid of its logit exceeds it, 0 < t < 1,
        and classes are two.  One name alone makes such a spec: the background is put in front of it.
    mean, std: per channel in the *network's* channel order, on the 0..255 pixel scale; as many as the image's channels.
    channel_order: ``RGB`` or ``BGR``, the order in which the network expects the channels of a colour image.
    bands, scale: which of an image file's bands these are, and which values, see `Pixels`.
    logits_stride: input pixels per logit along each axis (4 for SegFormer, 16 for SETR Naive, 1 for full resolution).
    ignore_index, reduce_zero_label: how labels on disk map to channels, as in mmsegmentation.
    resize: what the checkpoint's own processor does to an image first, as ``--resize`` takes it; "" if it does not say.
    resample: the filter that images are resized with, one of `FILTERS`.
    direct: whether, of an image that was resized to one window, logits go straight to the image's own size, as
        transformers has it, and not by way of the window's, as mmsegmentation has it.
    source, source_sha256: the checkpoint layout that was read, and the digest of the weights file.
    """

    architecture: str
    variant: str
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: str = "RGB"
    logits_stride: int = 4
    ignore_index: int = IGNORE_LABEL
    reduce_zero_label: bool = False
    source: str = ""
    source_sha256: str = ""
    threshold: float | None = None
    resize: str = ""
    resample: str = OPENCV
    direct: bool = False
    bands: tuple[int, ...] = ()
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.classes) == 1:
            self._name_the_background()
        count = len(self.classes)
        if not 1 <= count <= MAX_CLASSES:
            raise DeployError(f"model: got {count} classes, expected 1 to {MAX_CLASSES}; 255 means ignore")
        if len(self.palette) != count:
            raise DeployError(f"palette: got {len(self.palette)} colours for {count} classes, expected one for each")
        if any(not 0 <= value <= 255 for colour in self.palette for value in colour):
            raise DeployError("palette: got a value outside 0..255, expected [red, green, blue] of bytes")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not 1 <= len(self.mean) == len(self.std) <= MAX_BANDS or not finite or min(self.std) <= 0:
            raise DeployError(
                f"preprocessing: got mean {self.mean}, std {self.std}, expected one finite value of each for "
                "every channel, std > 0"
            )
        if self.channel_order not in (("RGB", "BGR") if len(self.mean) == 3 else ("RGB",)):
            raise DeployError(
                f"channel order: got {self.channel_order!r} of {len(self.mean)}, expected RGB or BGR of 3"
            )
        self.pixels  # noqa: B018 - checks them
        if self.resample not in FILTERS:
            raise DeployError(f"resample: got {self.resample!r}, expected one of {', '.join(FILTERS)}")
        if self.logits_stride < 1:
            raise DeployError(f"logits stride: got {self.logits_stride}, expected 1 or more")
        if self.threshold is not None and not (0 < self.threshold < 1 and count == 2):
            raise DeployError(
                f"model: got a threshold of {self.threshold} and {count} classes, expected more than 0, less than 1, "
                "and two classes"
            )

    def _name_the_background(self) -> None:
        for name, value in (
            ("classes", (BACKGROUND, *self.classes)),
            ("palette", (BLACK, *self.palette) if len(self.palette) == 1 else self.palette),
            ("threshold", THRESHOLD if self.threshold is None else self.threshold),
        ):
            object.__setattr__(self, name, value)

    @property
    def channels(self) -> int:
        """K, the channels of the network's output: as many as classes, or one that is compared with a threshold."""
        return len(self.classes) if self.threshold is None else 1

    @property
    def cut(self) -> float:
        """The logit above which the one channel is its class; 0 where there are more."""
        return 0.0 if self.threshold is None else cut_of(self.threshold)

    def at_threshold(self, threshold: float | None) -> ModelSpec:
        """The same with the threshold that the user gave; None keeps it.  Raises DeployError where there is none."""
        if threshold is None:
            return self
        if self.threshold is None:
            raise DeployError(
                f"--threshold {threshold:g}: got a network with {self.channels} channels, of which the largest wins, "
                "expected one channel; leave the option out"
            )
        return replace(self, threshold=threshold)

    @property
    def order(self) -> tuple[int, ...]:
        """Channel of an image that each input plane of the network takes."""
        return tuple(range(len(self.mean))) if self.channel_order == "RGB" else (2, 1, 0)

    @property
    def pixels(self) -> Pixels:
        """What an image is read as."""
        return Pixels(len(self.mean), self.bands, self.scale)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_json`.  Raises DeployError on missing, unknown or ill-typed fields."""
        return read_record(cls, data, "model spec", "build the bundle again")


def cut_of(threshold: float) -> float:
    """log(t / (1 - t)): the logit whose sigmoid is the threshold t.  Raises DeployError unless 0 < t < 1."""
    if not 0 < threshold < 1:
        raise DeployError(f"threshold: got {threshold}, expected more than 0 and less than 1")
    return math.log(threshold / (1 - threshold))


def said_threshold(spec: ModelSpec) -> str:
    """In words: what is told apart, and where."""
    return f"{spec.classes[1]} or {spec.classes[0]} at a probability of {spec.threshold:g}"
