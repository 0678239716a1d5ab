"""`deploy.py run`, watched from inside: when the engine was first called, and the most memory it ever held.

    python -m benchmarks.peers.driver STARTED REPORT.json run BUNDLE IMAGE -o DIR

STARTED: CLOCK_MONOTONIC of the parent just before it started this process, in seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deploy
from benchmarks.peers.worker import peak_mb
from engines import segmenter as room


class Probe:
    """Stands for a session and notes when anything of it is called for the first time."""

    def __init__(self, session: Any, seen: list[float]) -> None:
        self._session, self._seen = session, seen

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._session, name)
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            if not self._seen:
                self._seen.append(time.clock_gettime(time.CLOCK_MONOTONIC))
            return value(*args, **options)

        return call


def watched(original: Callable[..., Any], seen: list[float]) -> Callable[..., Any]:
    @contextmanager
    def opener(*args: Any, **options: Any) -> Iterator[Any]:
        with original(*args, **options) as (segmenter, manifest):
            segmenter.device.session = Probe(segmenter.session, seen)
            yield segmenter, manifest

    return opener


def main() -> int:
    started, report, words = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    seen: list[float] = []
    room.open_segmenter = watched(room.open_segmenter, seen)
    code = deploy.main(words)
    ended = time.clock_gettime(time.CLOCK_MONOTONIC)
    first = seen[0] - started if seen else None
    report.write_text(json.dumps({"first_call_s": first, "total_s": ended - started, "peak_mb": peak_mb()}))
    return code


if __name__ == "__main__":
    sys.exit(main())
