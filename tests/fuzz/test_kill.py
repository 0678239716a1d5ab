"""A few kills of every verb that writes; `python -m tests.fuzz.kill` does three hundred."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_killed_command_leaves_the_old_or_the_new_whole() -> None:
    if sys.platform != "linux":
        pytest.skip("it kills process groups of forked children")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.kill", "--times", "12"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("'old'") == 4
