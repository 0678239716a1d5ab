"""What is asked for of a video, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engines.images.read import MAX_PIXELS

RECONNECT = 300.0  # seconds: a camera that starts anew, or a switch, is back by then


@dataclass(frozen=True)
class VideoOptions:
    """every: label one frame of so many.  seconds: that are read from the first frame on.  keep_nodata: label what
    alpha hides, which else is 255.  bands, scale: in place of what the bundle says, see `engines.spec.Pixels`.
    reconnect: seconds that a camera or stream is dialled again for when it breaks off.
    skip_existing: what is there counts as done, so that of a file nothing is left that is not labelled to its end.
    """

    overlay: bool = False
    confidence: bool = False
    keep_nodata: bool = False
    max_pixels: int = MAX_PIXELS
    bands: tuple[int, ...] | None = None
    scale: tuple[float, float] | None = None
    skip_existing: bool = False
    every: int = 1
    seconds: float | None = None
    reconnect: float = RECONNECT


@dataclass
class VideoReport:
    """Of one video: what was written, and how fast.

    frames: that were labelled.  dropped: of a live source, that were passed over for newer ones.
    seconds: from opening to the last byte.  classes: share of all pixels.  encoders: by file.
    median_ms: of a frame, by part of the engine's work; frames overlap with decoding and encoding.
    latency_ms: of a live source, from a frame's arrival until its labels are there, p50 and p95.
    reconnects: times that a live source broke off and came back.  away_seconds: without it, in all.
    stopped: by Ctrl-C.  broken: why it ended early, or "".  lost: whether the GPU was.
    """

    input: str
    mask: str
    width: int
    height: int
    decoder: str
    live: bool
    frames: int = 0
    windows: int = 0
    dropped: int = 0
    seconds: float = 0.0
    classes: dict[str, float] = field(default_factory=dict)
    encoders: dict[str, str] = field(default_factory=dict)
    median_ms: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    reconnects: int = 0
    away_seconds: float = 0.0
    stopped: bool = False
    broken: str = ""
    lost: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """A live source has no end of its own: Ctrl-C is it, and nothing is missing then but for want of a frame."""
        return not self.stopped or (self.live and self.frames > 0)

    def __str__(self) -> str:
        rate = self.frames / self.seconds if self.seconds else 0.0
        parts = [f"{self.input}: {self.frames} frame(s) of {self.width}x{self.height}, {rate:.1f} a second"]
        if self.median_ms:
            parts.append("median " + ", ".join(f"{part} {taken:.0f}" for part, taken in self.median_ms.items()) + " ms")
        if self.live:
            parts.append(f"{self.dropped} dropped for newer ones")
        if self.away_seconds:
            parts.append(f"lost for {self.away_seconds:.1f} s in all, back {self.reconnects} time(s)")
        if self.latency_ms:
            parts.append("labels after " + ", ".join(f"{k} {ms:.0f}" for k, ms in self.latency_ms.items()) + " ms")
        parts += [f"{Path(path).name} by {encoder}" for path, encoder in self.encoders.items()]
        if self.stopped:
            parts.append("stopped; its files are complete until there" if self.frames else "stopped before a frame")
        return "; ".join(parts)
