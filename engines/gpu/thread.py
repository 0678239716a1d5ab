"""What is open in a thread, and by how many: closed with its last user, or when its thread ends."""

from __future__ import annotations

import threading
from typing import Any


class Use:
    """The GPU that is open in a thread, and by how many."""

    def __init__(self) -> None:
        self.gpu: Any = None
        self.users, self.thread = 0, threading.get_ident()

    def close(self) -> None:
        """In the thread itself.  In another nothing happens: the GPU is closed when its thread ends."""
        if threading.get_ident() == self.thread and self.gpu is not None:
            gpu, self.gpu = self.gpu, None
            gpu.close()


class _End:
    """Goes with its thread, which pycuda would abort the process for if a context were still open in it."""

    def __init__(self, use: Use) -> None:
        self._use = use

    def __del__(self) -> None:
        self._use.close()


class OfThread(threading.local):
    def __init__(self) -> None:
        self.use = Use()
        self._end = _End(self.use)
