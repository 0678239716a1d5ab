"""Which of the machine's GPUs this process sees: CUDA reads it once, from the environment, when it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engines.errors import DeployError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_COUNT = "import sys; sys.path.insert(0, sys.argv[1]); from engines.gpu.driver import count; print(count())"


def choose(device: int) -> None:
    """Leave this process and those it starts GPU `device` alone, of those that it sees.

    Before anything of CUDA was called.  Raises DeployError where CUDA_VISIBLE_DEVICES names fewer.
    """
    seen = os.environ.get(VISIBLE)
    names = None if seen is None else [name.strip() for name in seen.split(",") if name.strip()]
    if names is not None and device >= len(names):
        raise DeployError(f"--device: got {device}, expected 0 to {len(names) - 1}: {VISIBLE} is {seen!r}")
    os.environ[VISIBLE] = str(device) if names is None else names[device]


def visible() -> int:
    """How many GPUs this process sees, asked in another: CUDA stays as it is here.  Raises DeployError for none."""
    asked = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-c", _COUNT, str(Path(__file__).parents[2])], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise DeployError(asked.stderr.strip().splitlines()[-1].removeprefix("engines.errors.DeployError: "))
    return int(asked.stdout)
