"""The builder's progress as a bar, and Ctrl-C as a way out of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from engines.guard.child import interrupt

Result = TypeVar("Result")


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Progress:
    """Phases within phases, as a share of the whole.  Thread-safe: TensorRT calls from threads of its own."""

    def __init__(self) -> None:
        self.cancelled = False
        self.share = 0.0  # of the whole build, never falling
        self.phase = ""  # innermost
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._bar: tqdm[Any] | None = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))
            self.phase = name
            self._show()

    def step(self, name: str, index: int) -> bool:
        """Returns False to end the build."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = index + 1
            self._show()
            return not self.cancelled

    def finish(self, name: str) -> None:
        """Also of steps that were not reported one by one."""
        with self._lock:
            if name in self._phases and not self.cancelled:
                self._phases[name].done = self._phases[name].steps
                self._show()
            self._phases.pop(name, None)

    def __enter__(self) -> Progress:
        self._bar = tqdm(total=100, desc="building", unit="%", leave=False, disable=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        outer = [self._share(name) for name, phase in self._phases.items() if phase.parent not in self._phases]
        self.share = max(self.share, *outer, 0.0)
        if self._bar is not None:
            self._bar.set_description(self.phase[:40].lower() or "building", refresh=False)
            self._bar.update(round(100 * self.share) - self._bar.n)

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = max((self._share(child) for child, c in self._phases.items() if c.parent == name), default=0.0)
        return min(1.0, (phase.done + inner) / phase.steps)


def make_monitor(sdk: Any, progress: Progress) -> Any | None:
    """An IProgressMonitor that tells `progress`; None where the SDK has none."""
    if not hasattr(sdk, "IProgressMonitor"):
        return None

    class Monitor(sdk.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            sdk.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def run_cancellable(work: Callable[[], Result], progress: Progress) -> Result:
    """`work()` in a thread of its own, so that Ctrl-C is noticed while it is inside of the SDK.

    Raises KeyboardInterrupt once `work` has come back, after telling it by `progress.cancelled`; where the SDK has no
    monitor that is when it is done.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that asked
            errors.append(error)
        finally:
            done.set()

    with _interrupts(progress):
        thread = threading.Thread(target=body, name="build")
        thread.start()
        while not done.wait(0.1):  # in steps, so that Python gets to run the handler
            pass
        thread.join()  # or it might be the one that frees what `work` holds, while this one goes on with the SDK
    if progress.cancelled:
        raise KeyboardInterrupt
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def _interrupts(progress: Progress) -> Iterator[None]:
    """Signals that would raise KeyboardInterrupt cancel `progress` instead: an exception in the middle of waiting would
    leave the SDK at work.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals never arrive here
        return

    def cancel(*_: object) -> None:
        progress.cancelled = True

    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    raising = {kind: held for kind, held in before.items() if held in (signal.default_int_handler, interrupt)}
    for kind in raising:
        signal.signal(kind, cancel)
    try:
        yield
    finally:
        for kind, held in raising.items():
            signal.signal(kind, held)
