"""A signal that ends the work in good order: what is under way is finished, and files are closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
