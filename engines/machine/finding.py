"""One line of `deploy.py doctor`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """status: ok, missing (something will not work) or note.  fix: the command that mends it, or ``""``."""

    topic: str
    status: str
    detail: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
