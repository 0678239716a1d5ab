"""Signals that end the work, where Python would lose them."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from engines.guard.stop import nothing_swallowed


class _Ended:
    """Told to end while it is finalised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):  # the handler runs here
            pass


def _ends(ran: list[str]) -> None:
    with nothing_swallowed():
        _Ended()
        ran.append("on")  # the exception of the handler is lost


def _exit(*_: Any) -> None:
    sys.exit(1)


def test_a_signal_in_a_finalizer_still_ends_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a library that has put a handler there while it starts."""
    before, ran = signal.signal(signal.SIGTERM, _exit), []
    try:
        with pytest.raises(KeyboardInterrupt):
            _ends(ran)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ran == ["on"]
    assert capsys.readouterr().err == ""


def test_without_a_signal_nothing_changes() -> None:
    hook = sys.unraisablehook
    with nothing_swallowed():
        pass
    assert sys.unraisablehook is hook
    assert signal.set_wakeup_fd(-1) == -1
