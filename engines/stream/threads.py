"""Threads beside the one that owns the device, and how many."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from engines.machine.limits import cores

NICE = 10  # added, on the cores that the engine computes on


def reading_threads() -> int:
    """Two at least, so that a slow file holds up one of them."""
    return max(2, min(8, cores() // 2))


def writing_threads() -> int:
    return max(2, min(4, cores() // 4))


def threads(name: str, count: int, *, quiet: bool) -> ThreadPoolExecutor:
    """quiet: with what the engine's own threads leave of the cores, unless it waits for them."""
    return ThreadPoolExecutor(count, f"edgeseg-{name}", _stand_back if quiet else None)


def _stand_back() -> None:
    if sys.platform == "linux":  # elsewhere this is the whole process's
        with suppress(OSError):  # where a sandbox forbids it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, os.nice(0) + NICE))
