"""What is made of an image before it is run: the size that it is brought to, and the views that are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engines.errors import DeployError
from engines.images.resize import pixels
from engines.spec import ModelSpec
from engines.tiling.merge import MERGES
from engines.tiling.sizes import Resize

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # mmsegmentation's
LEAST, MOST, COUNT = 0.05, 16.0, 32  # of a scale, and how many there may be


@dataclass(frozen=True)
class View:
    """One size of an image, in pixels, as it is or mirrored.  scales: those that led to it; as often it counts."""

    height: int
    width: int
    mirror: bool
    scales: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}{', mirrored' if self.mirror else ''}"


@dataclass(frozen=True)
class ImageViews:
    """How images are run.

    resize: what they are brought to first, or None.  scales: factors of that size, each a view; empty for one view of
    that very size.  With scales a view is enlarged until the window fits into it, as SETR does.
    flip: each view once more, mirrored.  merge: ``mean`` or ``max`` of the views' probabilities.
    """

    resize: Resize | None = None
    scales: tuple[float, ...] = ()
    flip: bool = False
    merge: str = "mean"

    def __post_init__(self) -> None:
        for scale in self.scales:
            if not LEAST <= scale <= MOST:
                raise DeployError(
                    f"--scales: got {scale:g}, expected factors of {LEAST:g} to {MOST:g}, such as 0.75,1,1.25"
                )
        if len(self.scales) > COUNT:
            raise DeployError(f"--scales: got {len(self.scales)} of them, expected {COUNT} at most")
        if self.merge not in MERGES:
            raise DeployError(f"--tta-merge: got {self.merge!r}, expected one of {', '.join(MERGES)}")

    @property
    def plain(self) -> bool:
        """Whether images are run as they are."""
        return self.resize is None and not self.scales

    def of(self, height: int, width: int, window: tuple[int, int]) -> tuple[View, ...]:
        """The different views of an image of this size.  Raises DeployError where one would be too large."""
        base = (float(height), float(width)) if self.resize is None else self.resize.of(height, width)
        if not self.scales:
            return (View(*pixels(base), False, (1.0,)),)
        found: dict[tuple[int, int], list[float]] = {}
        for scale in self.scales:
            factor = max(scale, *(side / of for side, of in zip(window, base, strict=True)))
            found.setdefault(pixels((base[0] * factor, base[1] * factor)), []).append(scale)
        mirrors = (False, True) if self.flip else (False,)
        return tuple(View(*size, mirror, tuple(scales)) for size, scales in found.items() for mirror in mirrors)

    def to_json(self) -> dict[str, Any]:
        tta = {"scales": list(self.scales), "flip": self.flip, "merge": self.merge} if self.scales else None
        return {"resize": "none" if self.resize is None else str(self.resize), "tta": tta}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ImageViews:
        """Inverse of `to_json`."""
        tta = body["tta"] or {"scales": (), "flip": False, "merge": MERGES[0]}
        return cls(Resize.parse(body["resize"]), tuple(tta["scales"]), tta["flip"], tta["merge"])

    def __str__(self) -> str:
        size = "at their own size" if self.resize is None else f"resized to {self.resize}"
        if not self.scales:
            return size
        scales = ",".join(f"{scale:g}" for scale in self.scales)
        return f"{size}, {self.merge} of scales {scales}{' and their mirror images' if self.flip else ''}"


def resize_of(asked: str, spec: ModelSpec) -> Resize | None:
    """What ``--resize`` says, where ``checkpoint`` is what the checkpoint's processor does.  Raises DeployError."""
    if asked != "checkpoint":
        return Resize.parse(asked)
    if not spec.resize:
        raise DeployError(
            f"--resize checkpoint: got a {spec.architecture} from {spec.source or 'an unknown source'}, which does not "
            "say what its images were resized to; expected none, WxH, short=N or long=N"
        )
    return Resize.parse(spec.resize)


def views_of(
    size: Resize | None, tta: bool, scales: Sequence[float] | None, flip: bool, merge: str | None
) -> ImageViews:  # fmt: skip
    """Of the command line.  scales, merge: None where not given.  Raises DeployError where they are, without `tta`."""
    if not tta:
        options = (("--scales", scales is not None), ("--no-flip", not flip), ("--tta-merge", merge is not None))
        given = [name for name, there in options if there]
        if given:
            raise DeployError(f"{given[0]}: got it without --tta, which merges several views; add --tta")
        return ImageViews(size)
    return ImageViews(size, SCALES if scales is None else tuple(scales), flip, MERGES[0] if merge is None else merge)
