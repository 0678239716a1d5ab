"""How many pixels may be in flight: from before their file is decoded until what became of them is written."""

from __future__ import annotations

import threading

from engines.machine.limits import available_memory

PIXELS = 2**26  # 32 frames of 2048x1024; a pixel takes 4 to some 16 bytes: image, labels, confidence, an overlay
BYTES = 64  # of memory that is free, for each pixel: less than that many pixels where it is short
LEAST = 2**16  # pixels that an image counts as at least: a small one is more than its pixels


class StoppedError(Exception):
    """Raised in threads that wait, when nobody needs them any more."""


class PixelBudget:
    """Pixels that threads take and give back.  An image larger than all of them goes alone.

    pixels: 0 means `PIXELS`, or what memory is free for.
    """

    def __init__(self, pixels: int = 0) -> None:
        free = available_memory()
        self._pixels = pixels or (PIXELS if free is None else max(LEAST, min(PIXELS, free // BYTES)))
        self._taken = self._turn = 0
        self._passed: set[int] = set()
        self._stopped = False
        self._changed = threading.Condition()

    def take(self, pixels: int, turn: int | None) -> None:
        """Wait until they are free, and for the turns before this one; None waits for nobody.  Raises StoppedError."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._fits(pixels, turn))
            if self._stopped:
                raise StoppedError
            self._taken += pixels

    def give(self, pixels: int) -> None:
        with self._changed:
            self._taken -= pixels
            self._changed.notify_all()

    def end_turn(self, turn: int) -> None:
        """Those after it need not wait for it: it has taken what it takes, or takes nothing."""
        with self._changed:
            self._passed.add(turn)
            while self._turn in self._passed:
                self._passed.remove(self._turn)
                self._turn += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """End all waiting, now and later."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _fits(self, pixels: int, turn: int | None) -> bool:
        return turn in (None, self._turn) and (not self._taken or self._taken + pixels <= self._pixels)


class Share:
    """What one image has of a budget.  turn: its place, where images are taken in order; None where they are not."""

    def __init__(self, budget: PixelBudget, turn: int | None) -> None:
        self._budget, self._turn, self.pixels = budget, turn, 0

    def admit(self, pixels: int) -> None:
        """Take `pixels` more; see `engines.images.read.Admit`."""
        pixels = max(pixels, LEAST)
        self._budget.take(pixels, self._turn)
        self.pixels += pixels
        self.end_turn()

    def end_turn(self) -> None:
        if self._turn is not None:
            self._budget.end_turn(self._turn)
            self._turn = None

    def release(self) -> None:
        """Give all back, once nothing of the image is held any more."""
        pixels, self.pixels = self.pixels, 0
        self._budget.give(pixels)
