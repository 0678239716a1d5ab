"""Ctrl-C after engines were made and freed: it interrupts, and does not crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import gc, os, signal, sys, time
from pathlib import Path
from contextlib import ExitStack
from engines.base import BuildConfig
from engines.openvino_backend import backend

config = BuildConfig()
stacks = [ExitStack() for _ in range(2)]
for stack in stacks:
    stack.enter_context(backend.load(backend.build(Path(sys.argv[1]) / "model.onnx", config), config))
for stack in stacks:  # in the order that they were made
    stack.close()
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_two_engines_interrupts(tiny_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
