"""A build that gets a real SIGINT, in a process of its own: other libraries that tests load leave the main thread with
a signal stack that is gone, and the next signal kills the process.  Prints what TensorRT said of it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from engines.backends.tensorrt import build as builder
from engines.backends.tensorrt.messages import logger_of
from engines.backends.tensorrt.progress import Progress
from engines.backends.tensorrt.tensorrt_rtx import backend
from engines.contract import BuildConfig


class Interrupted(Progress):
    sent = False

    def step(self, name: str, index: int) -> bool:
        if not Interrupted.sent:
            Interrupted.sent = True
            os.kill(os.getpid(), signal.SIGINT)
            until = time.monotonic() + 30
            while not self.cancelled and time.monotonic() < until:
                time.sleep(0.01)
        return super().step(name, index)


builder.Progress = Interrupted  # type: ignore[misc]
try:
    backend.build(Path(sys.argv[1]), BuildConfig())
except KeyboardInterrupt:
    print("KeyboardInterrupt after", logger_of(backend.sdk()).messages)
