"""Whether a worker gets on: by its answers, by the windows that its device has finished, and by rows on their way."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

_QUIET = 60.0  # seconds without progress until it is said; then each time that they have doubled
_DEAF = 10.0  # seconds without an answer, which a worker gives every second, until that is said in place of it


def bytes_moved(thread: int) -> int:
    """That a thread of this process has read and written so far, by whatever library; 0 where the kernel does not say.

    thread: its native number.
    """
    with suppress(OSError):
        lines = Path(f"/proc/self/task/{thread}/io").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))
    return 0


class Watch:
    """Of one place.  Progress is a window or a row, or work after none: an input may take any time as long as its
    windows come, and then the bytes of what is made of them."""

    def __init__(self) -> None:
        self._before = 0, 0
        self.asked(afresh=True)

    def asked(self, *, afresh: bool) -> None:
        """afresh: it had nothing to do before."""
        self._heard = time.monotonic()
        if afresh:
            self._got_on()

    def answered(self, progress: tuple[int, int], rows: bool) -> None:
        """progress: windows that the worker has finished, and bytes that it has moved, in all."""
        self._heard = time.monotonic()
        if rows or progress != self._before:
            self._got_on()
        self._before = progress

    def _got_on(self) -> None:
        self._last, self._next = time.monotonic(), _QUIET

    @property
    def quiet(self) -> float:
        """Seconds since it got on."""
        return time.monotonic() - self._last

    def said(self) -> str:
        """What is to be said of it now, if anything."""
        if self.quiet < self._next:
            return ""
        self._next = 2 * self._next
        if time.monotonic() - self._heard > _DEAF:
            return f"no progress for {self.quiet:.0f} s, and it does not answer"
        return f"no progress for {self.quiet:.0f} s; it answers, but no window ends"
