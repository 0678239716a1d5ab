"""What is known of a GPU: as its driver describes it, and of that what an engine is tied to, as text in manifests."""

from __future__ import annotations

import re
from dataclasses import dataclass

Pair = tuple[int, int]
_TEXT = re.compile(r"cuda sm_(\d+)(\d) (.+), driver for CUDA (\d+)\.(\d+)")


@dataclass(frozen=True)
class Fingerprint:
    """What engines are tied to.  driver: the newest CUDA that it runs, (12, 6).  `parse` undoes `str`.

    The text is in manifests, headers of engines and names of timing caches on disk: it must not change.
    """

    sm: Pair
    name: str
    driver: Pair

    def __str__(self) -> str:
        return f"cuda sm_{self.sm[0]}{self.sm[1]} {self.name}, driver for CUDA {self.driver[0]}.{self.driver[1]}"

    @classmethod
    def parse(cls, text: str) -> Fingerprint | None:
        """None for the text of a device that is no GPU."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        major, minor, name, driver_major, driver_minor = match.groups()
        return cls((int(major), int(minor)), name, (int(driver_major), int(driver_minor)))


@dataclass(frozen=True)
class GpuInfo:
    """A GPU as its driver describes it.  driver: the newest CUDA that it runs, 13000 for 13.0.  memory: bytes.

    integrated: shares memory with the CPU, as every Jetson does.
    """

    name: str
    sm: Pair
    driver: int
    memory: int
    integrated: bool

    @property
    def cuda(self) -> Pair:
        """The newest CUDA that the driver runs: (13, 0)."""
        return self.driver // 1000, self.driver % 1000 // 10

    def __str__(self) -> str:
        return str(Fingerprint(self.sm, self.name, self.cuda))
