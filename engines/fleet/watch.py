"""Whether a worker gets on: by its answers, and by the windows that its device has finished."""

from __future__ import annotations

import time

_QUIET = 60.0  # seconds without progress until it is said; then each time that they have doubled
_DEAF = 10.0  # seconds without an answer, which a worker gives every second, until that is said in place of it


class Watch:
    """Of one place.  Progress is a window or a row, or work after none: an input may take any time as long as its
    windows come."""

    def __init__(self) -> None:
        self._windows = 0
        self.asked(afresh=True)

    def asked(self, *, afresh: bool) -> None:
        """afresh: it had nothing to do before."""
        self._heard = time.monotonic()
        if afresh:
            self._got_on()

    def answered(self, windows: int, rows: bool) -> None:
        """windows: that the worker has finished in all."""
        self._heard = time.monotonic()
        if rows or windows != self._windows:
            self._got_on()
        self._windows = windows

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
