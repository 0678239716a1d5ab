"""Ctrl-C after engines were made and freed: it interrupts, and does not crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
PROGRAM = """
import gc, os, signal, sys, time
from contextlib import ExitStack
from pathlib import Path
from engines.contract import BuildConfig
from engines.backends.openvino.openvino import observing

model = (Path(sys.argv[1]) / "model.onnx").read_bytes()
stacks = [ExitStack() for _ in range(2)]
for stack in stacks:
    stack.enter_context(observing(model, ["logits"], BuildConfig()))
for stack in stacks:  # in the order that they were made
    stack.close()
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_after_two_engines_interrupts(tiny_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
