"""The peers' own environment: it sees the project's packages, and adds to them without changing any."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from benchmarks.peers.models import ROOT

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
CONSTRAINTS = ROOT / "constraints.txt"


def peers_python(folder: Path) -> tuple[Path, str]:
    """The interpreter of the environment at `folder`, made or brought up to date, and what went wrong, if anything.

    A .pth file lends it the packages of the running environment, so that torch is neither copied nor fetched again,
    and every contestant runs the same one.
    """
    python = folder.absolute() / "bin" / "python"
    lent = sysconfig.get_paths()["purelib"]
    text = REQUIREMENTS.read_text() + CONSTRAINTS.read_text() + lent
    stamp, digest = folder / "installed", hashlib.sha256(text.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return python, ""
    print(f"peers: installing into {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=folder.exists())
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "project.pth").write_text(lent + "\n")
    command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS), "-c", str(CONSTRAINTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return python, f"pip install -r {REQUIREMENTS.relative_to(ROOT)} failed: {lines[-1] if lines else 'no output'}"
    stamp.write_text(digest)
    return python, ""


def variables(threads: int) -> dict[str, str]:
    """The environment of every process that is measured: one number of threads, nothing fetched from a hub."""
    count = str(threads)
    paths = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "MPLBACKEND": "agg"}
    return {**os.environ, **paths, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
