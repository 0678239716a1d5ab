"""The parent's end of the pipe to a contestant."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.peers.contestants import tuning
from benchmarks.peers.environment import variables
from benchmarks.peers.models import ROOT


class Failed(Exception):
    """A contestant cannot go on; the message says why in one line."""


class Client:
    """Starts a worker and waits until it is ready.  Raises Failed when it cannot take part."""

    def __init__(self, python: Path, contestant: str, model: str, work: Path, threads: int) -> None:
        self.name = contestant
        self._log = work / f"{contestant}.log"
        command = [python, "-m", "benchmarks.peers.worker", contestant, model, work, threads]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                cwd=ROOT, env={**variables(threads), **tuning(contestant)},
            )  # fmt: skip
        self.hello = self._receive()
        if "unavailable" in self.hello:
            self.close()
            raise Failed(_hint(self.hello["unavailable"]))

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.  Raises Failed when the worker has died."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: reading says why
        return self._receive()

    def close(self) -> None:
        """End the worker; no request may be on its way."""
        self._process.kill()
        self._process.communicate()  # closes the pipes

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self.close()
            raise Failed(f"exit {code}: {last_line(self._log.read_text()) or 'killed, out of memory?'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _hint(reason: str) -> str:
    if "No module named" in reason:
        return f"not installed: {reason}; pip install -r benchmarks/peers/requirements.txt -c constraints.txt"
    return reason


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
