"""A signal that ends the work in good order: what is under way is finished, and files are closed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from engines.guard.child import interrupt, same_press

_KINDS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """asked: whether to end what is under way."""

    asked: bool = False


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Within the block the first Ctrl-C (or SIGTERM) is `Stop.asked`; another one, later, is a KeyboardInterrupt.

    Only the main thread hears signals; in another this does nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def heard(*_: Any) -> None:
        if stop.asked:
            interrupt()
        elif not same_press():
            stop.asked = True

    before = {kind: signal.getsignal(kind) for kind in _KINDS}
    for kind, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(kind, heard)
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextmanager
def nothing_swallowed() -> Iterator[None]:
    """After the block KeyboardInterrupt for a signal to end that came in it, whose handler's exception was lost.

    Python drops what is raised in a finalizer, in words of its own; and libraries put handlers of their own there.
    Only for the main thread, which hears signals; in another this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before, hook = signal.set_wakeup_fd(written, warn_on_full_buffer=False), sys.unraisablehook
    sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, SystemExit | KeyboardInterrupt) else hook(lost)
    try:
        yield
        with suppress(BlockingIOError):
            if set(os.read(heard, 1 << 12)) & set(_KINDS):
                raise KeyboardInterrupt
    finally:
        sys.unraisablehook = hook
        signal.set_wakeup_fd(before)
        os.close(heard)
        os.close(written)
