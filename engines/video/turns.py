"""Several feeds as one: who has a frame, and whose turn it is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from engines.video.feed import LOOK, Feed
from engines.video.frames import VideoFrame


class Turns:
    """Frames of several feeds, each with its feed: of those that have one, the feed whose last is longest ago.

    free: whether what comes of a feed's frame would find room; one that has none is passed over.
    idle: called in the thread that iterates, while no frame is there to be had.
    """

    def __init__(
        self, feeds: Iterable[Feed], free: Callable[[Feed], bool] = lambda feed: True,
        idle: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._order, self._free, self._idle = deque(feeds), free, idle
        self._woken = threading.Event()
        for feed in self._order:
            feed.heard = self.wake

    def wake(self) -> None:
        """Look again, who has a frame and room for it: from any thread."""
        self._woken.set()

    def leave(self) -> None:
        """No feed's frames are taken any more; their threads end side by side."""
        for feed in self._order:
            feed.leave()

    @property
    def ready(self) -> bool:
        """Whether the next frame, or the end of all, is there without waiting."""
        return any(feed.filled and self._free(feed) for feed in self._order) or self._over

    def __iter__(self) -> Iterator[tuple[Feed, VideoFrame]]:
        while not self._over:
            self._woken.clear()
            turn = self._next()
            if turn is not None:
                yield turn
                del turn  # holds a frame, while the next is awaited
                continue
            self._idle()
            if not self.ready:
                self._woken.wait(LOOK)

    @property
    def _over(self) -> bool:
        return all(feed.over for feed in self._order)

    def _next(self) -> tuple[Feed, VideoFrame] | None:
        for feed in self._order:
            frame = feed.take() if self._free(feed) else None
            if frame is not None:
                self._order.remove(feed)
                self._order.append(feed)
                return feed, frame
        return None
