"""Runs the work in a child process, and outlives whatever happens to it.

The child is forked before any large library is loaded: it costs a few milliseconds and shares the terminal and the
process group.  A library that crashes (SIGSEGV, SIGABRT), and a kernel that kills for memory, end the child; the parent
then says in one line what happened and removes what is left.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from engines.guard.ledger import ledger

_PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # end the work in good order
_PR_SET_PDEATHSIG = 1
_ONE = 1.0  # seconds within which signals count as one
_INTERRUPTED, _CRASHED = 130, 2  # exit codes


def guarded(work: Callable[[], int], what: str) -> int:
    """The exit code of `work()`, done in a child.  what: names the work in the message of a crash.

    In the child this returns, too, and its caller must exit with the code.
    """
    if sys.platform != "linux":  # sigwaitinfo and the death signal are Linux's
        return _ended(work())
    parent, watched = os.getpid(), _PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        for kind in _STOPS:
            if signal.getsignal(kind) is not signal.SIG_IGN:  # as nohup leaves it
                signal.signal(kind, interrupt)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _end_with(parent)
        return _ended(work())
    status = _wait(child, watched)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _told(signal.Signals(-code), what)


_crashing: list[Callable[[], bool]] = []


def end_at_once(needed: Callable[[], bool] = lambda: True) -> None:
    """End the work without Python's clearing up: a library has threads that crash when it goes away around them.

    needed: asked then, whether it still has.
    """
    _crashing.append(needed)


def _ended(code: int) -> int:
    if any(needed() for needed in _crashing):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


_last = -_ONE


def interrupt(*_: Any) -> None:
    """Handler of a signal that ends the work: KeyboardInterrupt, once for what arrives together.

    A terminal, ``timeout`` and the parent may all send one; a second would break into the clearing up after the first.
    """
    if not same_press():
        raise KeyboardInterrupt


def same_press() -> bool:
    """Whether a signal that arrives now counts as one with the last."""
    global _last
    now = time.monotonic()
    if now - _last < _ONE:
        return True
    _last = now
    return False


def _wait(child: int, watched: set[signal.Signals]) -> int:
    """The child's wait status.  Signals that were sent to this process alone are passed on."""
    while True:
        info = signal.sigwaitinfo(watched)
        if info.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
        elif info.si_code <= 0 and info.si_pid != child:  # the kernel's own, of the terminal, go to the whole group
            os.kill(child, info.si_signo)


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when the parent is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # that was before
        os.kill(os.getpid(), signal.SIGKILL)


def _told(kind: signal.Signals, what: str) -> int:
    """Say in one line how the child ended, and remove what it left."""
    doing, _ = ledger.read()
    stays = ledger.clear_up()
    left = f"left: {', '.join(map(str, stays))}" if stays else "nothing half-written is left"
    if kind in _STOPS:
        print(f"interrupted; {left}", file=sys.stderr)
        return _INTERRUPTED
    where = f" while {doing}" if doing else ""
    if kind == signal.SIGKILL:
        why = "most likely by the system, for want of memory: take a smaller --tile or --batch, or close other programs"
        print(f"error: {what}: killed{where} ({why}); {left}", file=sys.stderr)
    else:
        why = "the fault is in that library: take another --backend, and report the network to its makers"
        why = why if doing else "the fault is in a library; run doctor"
        print(f"error: {what}: crashed with {kind.name}{where} ({why}); {left}", file=sys.stderr)
    return _CRASHED
