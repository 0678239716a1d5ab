"""Keeps a library from leaving this thread with a signal stack that is gone.

OpenVINO 2026.4.1 gives the thread that compiles an engine an alternate signal stack and takes it back with the engine.
Of two engines freed in the order that they were made, the second puts the first one's back, which is unmapped by then:
the next Ctrl-C, whose handler Python runs on that stack, ends in a segmentation fault and leaves half-made files.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """stack_t of Linux, see sigaltstack(2)."""

    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


_DISABLED = 2  # SS_DISABLE


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """After the block this thread has the signal stack that it had before."""
    set_stack = getattr(ctypes.CDLL(None), "sigaltstack", None)
    if set_stack is None:
        yield
        return
    before = _Stack()
    set_stack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if before.flags & _DISABLED:
            before.size = 0
        set_stack(ctypes.byref(before), None)
