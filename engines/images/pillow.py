"""Pillow's switches, which are the whole process's, set for as long as any thread decodes an image of ours.

Its limit is read where a file is opened, and again by the loaders of TIFF, WebP, GIF and MPO; that cut files are put up
with, by most loaders: there is no way round the module's variables.  So they are set when the first thread begins and
set back when the last one ends, and threads decode side by side.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import Any

from PIL import Image, ImageFile

_core: Any = Image.core  # type: ignore[attr-defined]
_log = logging.getLogger("PIL")
_MODULES = r"(PIL|pillow_heif)\b"


class _Shared:
    """A switch of the whole process: on from the first thread that needs it to the last."""

    def __init__(self, on: Callable[[], AbstractContextManager[None]]) -> None:
        self._on, self._lock, self._users = on, threading.Lock(), 0
        self._state: AbstractContextManager[None] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._state = self._on()
                self._state.__enter__()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    assert self._state is not None
                    self._state.__exit__(None, None, None)


@contextmanager
def _own_terms() -> Iterator[None]:
    _register_heif()
    if not _log.handlers:
        _log.addHandler(logging.NullHandler())  # else logging's last resort prints them
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
    # Not catch_warnings: it sets back every filter, those of other threads too.
    warnings.filterwarnings("ignore", module=_MODULES)
    try:
        yield
    finally:
        with suppress(ValueError):  # another thread's catch_warnings has set it back
            warnings.filters.remove(("ignore", None, Warning, re.compile(_MODULES), 0))  # type: ignore[attr-defined]
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


@contextmanager
def _one_block() -> Iterator[None]:
    _core.set_use_block_allocator(1)
    try:
        yield
    finally:
        _core.set_use_block_allocator(0)


own_terms = _Shared(_own_terms)
"""No limit but the caller's, no cut files, which come back half grey, and no warnings, which are no use to a script."""

one_block = _Shared(_one_block)
"""Images that are decoded meanwhile lie in one block each."""


@cache
def _register_heif() -> None:
    """HEIC, where the extra that reads it is installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
