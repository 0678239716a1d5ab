"""A process for each GPU: here any program, since only what it prints and how it ends matters."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from engines.machine.limits import total_memory
from engines.stream.devices import on_every_gpu
from tests.conftest import ROOT

STOPPED = """
import pathlib, signal, sys, time
def stop(*_):
    signal.alarm(20)  # ends it where nobody reads
    print("x" * 1_000_000)  # more than a pipe holds
    pathlib.Path(sys.argv[1] + sys.argv[4]).touch()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1] + "ready" + sys.argv[4]).touch()
time.sleep(60)
"""


SHARE = """
import json, os, sys
os.sched_getaffinity = lambda process: set(range(24))
from engines.machine.limits import cores, total_memory
from engines.stream.threads import reading_threads, writing_threads
print(json.dumps([cores(), reading_threads(), writing_threads(), total_memory()]))
"""


def test_they_divide_the_cores_and_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone each would decode with eight threads, and write with four."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(24)), raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    memory = total_memory()
    each = [8, 4, 2, None if memory is None else memory // 3]
    assert on_every_gpu([sys.executable, "-c", SHARE], [], 3) == [each] * 3


def test_ctrl_c_takes_the_reports_of_those_that_stop_in_good_order(tmp_path: Path) -> None:
    """However long they are; all have ended then."""
    ready = [tmp_path / f"ready{index}" for index in range(2)]

    def press(*_: object) -> None:
        if all(path.exists() for path in ready):
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            on_every_gpu([sys.executable, "-c", STOPPED, f"{tmp_path}/"], [], 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all((tmp_path / str(index)).exists() for index in range(2))
