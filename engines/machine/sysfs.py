"""Small files of /proc and /sys, below a root folder so that recorded trees can be read too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from engines.files import natural

ROOT = Path("/")


def text(path: Path) -> str | None:
    """The file's content without surrounding white space and NULs; None where it cannot be read.

    A sensor that is switched off exists and answers with an error: that is None too.
    """
    try:
        return path.read_text(errors="replace").strip("\0 \t\r\n")
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The whole number in a file; None where there is none."""
    content = text(path)
    return int(content) if content and re.fullmatch(r"-?\d+", content) else None


def glob(root: Path, pattern: str) -> list[Path]:
    """Sorted, with the numbers in names as numbers: policy2 before policy10."""
    return sorted(root.glob(pattern), key=natural)


def memory_kb(root: Path = ROOT) -> dict[str, int]:
    """/proc/meminfo: ``MemTotal``, ``MemAvailable`` and more, in units of 1024 bytes; empty where there is none."""
    return {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB", text(root / "proc/meminfo") or "", re.M)}


def packages(root: Path = ROOT) -> dict[str, str]:
    """Installed Debian packages and their versions, from dpkg's own file; empty where there is none."""
    return dict(_packages(text(root / "var/lib/dpkg/status") or ""))


def _packages(status: str) -> Iterator[tuple[str, str]]:
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): *(.*)$", paragraph, re.M))
        if fields.get("Status", "").endswith(" installed") and {"Package", "Version"} <= set(fields):
            yield fields["Package"], fields["Version"]


def cpu_name() -> str:
    """The processor as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown CPU"
    names = [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(("model name", "hardware"))]
    return names[0] if names else "unknown CPU"
