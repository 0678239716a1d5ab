"""A signal that ends the work in good order: what is under way is finished, and files are closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engines.guard.child import interrupt, same_press

_KINDS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def asked_to_stop(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block the first Ctrl-C (or SIGTERM) calls `stop`; another one, later, is a KeyboardInterrupt.

    Only the main thread hears signals; in another this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def heard(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            interrupt()
        elif not same_press():
            pressed = True
            stop()

    before = {kind: signal.getsignal(kind) for kind in _KINDS}
    for kind, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(kind, heard)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
