"""The C core's threads as the process sees them: few for little work, kept between calls, new ones after a fork."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import os, threading, time
import numpy as np
from engines.tiling import core

def gather(size, threads):
    image = np.arange(size * size * 3, dtype=np.uint32).astype(np.uint8).reshape(size, size, 3)
    return core.gather(image, 0, 0, (size, size), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), threads=threads)

def count(right):
    for _ in range(1000):  # a thread that was joined may still be listed for a moment
        if (found := len(os.listdir("/proc/self/task")) - before) == right:
            break
        time.sleep(0.01)
    return found

before = len(os.listdir("/proc/self/task"))
gather(16, 8)
assert count(0) == 0, "little work is done by the caller"
right = gather(512, 1)
for _ in range(20):
    assert (gather(512, 4) == right).all()
assert count(3) == 3, "threads are kept, not started for each call"
together = threading.Barrier(3)
wrong = []
def call():
    together.wait()
    wrong.extend(index for index in range(20) if not (gather(512, 4) == right).all())
callers = [threading.Thread(target=call) for _ in range(3)]
[caller.start() for caller in callers]
[caller.join() for caller in callers]
assert not wrong and count(3) == 3, "callers share them"
child = os.fork()
if child == 0:
    os._exit(0 if (gather(512, 4) == right).all() and len(os.listdir("/proc/self/task")) == 4 else 1)
assert os.waitpid(child, 0)[1] == 0, "a forked child starts its own"
assert (gather(512, 4) == right).all()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_threads_are_kept_and_no_more_than_the_work_is_worth() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
