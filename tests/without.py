"""The command line on a machine that lacks packages: importing one of them raises."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parent.parent


def deploy_without(packages: Collection[str], argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `deploy.py` with `argv` in a new process where even looking for one of `packages` is an AssertionError."""
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {set(packages)!r}:\n"
        "            raise AssertionError(f'deploy.py imported {name}')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import deploy\n"
        "sys.exit(deploy.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
