"""The files that a video becomes, each written by a thread behind the device, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from engines.contract import UInt8
from engines.files import make_folder, replacing_path
from engines.images.bands import shown
from engines.images.videos import CONFIDENCE, LABELS, OVERLAY
from engines.images.write import confidence_bytes, label_counts, overlay
from engines.spec import IGNORE_LABEL
from engines.stream.threads import threads
from engines.tiling.device import Mask
from engines.video.av_write import Look, write_grey, write_picture
from engines.video.frames import VideoFrame, VideoInfo

_WAITING = 2  # frames that a track is behind with: there is then no room for another


class Written(Protocol):
    """A video file that is being written."""

    encoder: str
    note: str

    def add(self, pixels: UInt8, time: Fraction) -> None: ...

    def finish(self) -> None: ...


class Track:
    """One file.  Left without an error it is whole and in its place; with one it is not there."""

    def __init__(
        self, stack: ExitStack, path: Path, begin: Callable[[Path], AbstractContextManager[Written]], quiet: bool,
        heard: Callable[[], None],
    ) -> None:  # fmt: skip
        self._file = stack.enter_context(begin(stack.enter_context(replacing_path(path, ending=path.suffix))))
        self._threads = stack.enter_context(threads("video", 1, quiet=quiet))
        self._open: deque[Future[None]] = deque()
        self._heard = heard
        self.path, self.encoder = path, self._file.encoder

    @property
    def note(self) -> str:
        return self._file.note

    @property
    def behind(self) -> bool:
        return sum(not each.done() for each in self._open) >= _WAITING

    def put(self, pixels: Callable[[], UInt8], time: Fraction) -> None:
        """pixels: called in the track's thread.  Raises the DeployError of a frame before."""
        added = self._threads.submit(lambda: self._file.add(pixels(), time))
        added.add_done_callback(lambda _: self._heard())
        self._open.append(added)
        while self._open and self._open[0].done():
            self._open.popleft().result()

    def finish(self) -> None:
        while self._open:
            self._open.popleft().result()
        self._file.finish()


class Tracks:
    """All files of a video, ``NAME.labels.mkv`` and what goes with it, begun with the first frame.

    heard: called in their threads with each frame that is written.
    counts: (256,) pixels of each label.  frames: that were put.
    """

    def __init__(
        self, labels: Path, info: VideoInfo, look: Look, *, with_overlay: bool, with_confidence: bool, quiet: bool,
        heard: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._heard = heard
        self._labels, self._info, self._look, self._quiet = labels, info, look, quiet
        self._wanted = {OVERLAY: with_overlay, CONFIDENCE: with_confidence}
        self._stack = ExitStack()
        self.tracks: dict[str, Track] = {}
        self.counts = np.zeros(256, np.int64)
        self.frames = 0

    @property
    def behind(self) -> bool:
        """Whether a frame that is put now would wait behind others: who asks before bounds what waits."""
        return any(track.behind for track in self.tracks.values())

    def put(self, frame: VideoFrame, mask: Mask, keep_hidden: bool) -> None:
        """keep_hidden: label what alpha hides, too.  Raises DeployError where a file cannot be written."""
        picture, labels = frame.picture, mask.labels
        if picture.hidden is not None and not keep_hidden:
            labels[picture.hidden] = IGNORE_LABEL
        if not self.tracks:
            self._begin(labels)
        self.counts += label_counts(labels)
        self.tracks[LABELS].put(lambda: labels, frame.time)
        if OVERLAY in self.tracks:
            self.tracks[OVERLAY].put(
                lambda: overlay(shown(picture.pixels), labels, self._look.palette), frame.time
            )  # fmt: skip
        certainty = mask.confidence
        if certainty is not None and CONFIDENCE in self.tracks:
            self.tracks[CONFIDENCE].put(lambda: confidence_bytes(certainty), frame.time)
        self.frames += 1

    def path(self, kind: str) -> Path:
        return self._labels.with_name(self._labels.name.removesuffix(LABELS) + kind)

    def finish(self) -> None:
        """All files are whole, with the end of the block."""
        for track in self.tracks.values():
            track.finish()

    def __enter__(self) -> Tracks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _begin(self, labels: UInt8) -> None:
        make_folder(self._labels.parent)
        size, look = labels.shape, self._look
        wanted = [LABELS, *(kind for kind, asked in self._wanted.items() if asked)]
        for kind in wanted:

            def begin(path: Path, kind: str = kind) -> AbstractContextManager[Written]:
                if kind == OVERLAY:
                    return write_picture(path, size, self._info, self.path(kind))
                return write_grey(path, size, self._info, look if kind == LABELS else None, self.path(kind))

            self.tracks[kind] = Track(self._stack, self.path(kind), begin=begin, quiet=self._quiet, heard=self._heard)
