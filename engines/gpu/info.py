"""What is known of a GPU: as its driver describes it, and of that what an engine is tied to, as text in manifests."""

from __future__ import annotations

import re
from dataclasses import dataclass

Pair = tuple[int, int]
_TEXT = re.compile(r"cuda sm_(\d+)(\d) (.+?)(?: \[(\d+) SM, (\d+) GB(?:, ([^\]]+))?\])?, driver for CUDA (\d+)\.(\d+)")


@dataclass(frozen=True)
class Fingerprint:
    """What engines are tied to.  driver: the newest CUDA that it runs, (12, 6).  `parse` undoes `str`.

    multiprocessors, gigabytes, module: two GPUs of one name may differ in them, as an AGX Orin and an Orin NX do; 0 and
    "" where they are not known, as in texts of earlier versions.
    The text is in manifests, headers of engines and names of timing caches on disk: it must not change.
    """

    sm: Pair
    name: str
    driver: Pair
    multiprocessors: int = 0
    gigabytes: int = 0
    module: str = ""

    def __str__(self) -> str:
        return f"cuda sm_{self.sm[0]}{self.sm[1]} {self.model}, driver for CUDA {self.driver[0]}.{self.driver[1]}"

    @property
    def model(self) -> str:
        """The name, and of what kind of it this is: ``Orin [16 SM, 64 GB, p3701-0005]``."""
        parts = [f"{self.multiprocessors} SM", f"{self.gigabytes} GB", *([self.module] if self.module else [])]
        return f"{self.name} [{', '.join(parts)}]" if self.multiprocessors else self.name

    def same_model(self, other: Fingerprint) -> bool:
        """Whether engines that are tied to a model of GPU may go from one to the other, as far as is known.

        On one Jetson module the power mode decides how many multiprocessors are awake.
        """
        if self.name != other.name or self.sm != other.sm:
            return False
        if not (self.multiprocessors and other.multiprocessors):
            return True
        if self.module and other.module:
            return (self.module, self.gigabytes) == (other.module, other.gigabytes)
        return (self.multiprocessors, self.gigabytes) == (other.multiprocessors, other.gigabytes)

    @classmethod
    def parse(cls, text: str) -> Fingerprint | None:
        """None for the text of a device that is no GPU."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        major, minor, name, count, gigabytes, module, *driver = match.groups()
        newest = (int(driver[0]), int(driver[1]))
        return cls(
            (int(major), int(minor)), name, newest,
            multiprocessors=int(count or 0), gigabytes=int(gigabytes or 0), module=module or "",
        )  # fmt: skip


@dataclass(frozen=True)
class GpuInfo:
    """A GPU as its driver describes it.  driver: the newest CUDA that it runs, 13000 for 13.0.  memory: bytes.

    integrated: shares memory with the CPU, as every Jetson does.  multiprocessors: 0 where they are not known.  module:
    NVIDIA's number of the Jetson module, or "".  coherent: it caches what it reads of the host's memory.
    """

    name: str
    sm: Pair
    driver: int
    memory: int
    integrated: bool
    multiprocessors: int = 0
    module: str = ""
    coherent: bool = False

    @property
    def cuda(self) -> Pair:
        """The newest CUDA that the driver runs: (13, 0)."""
        return self.driver // 1000, self.driver % 1000 // 10

    @property
    def gigabytes(self) -> int:
        """Of the memory chips, whatever driver and error correction keep of them: the next of 4, 5, 6 or 7 times a
        power of two, which is how memory is built.
        """
        step = 1 << max((-(-self.memory // 2**30) - 1).bit_length() - 3, 0)
        return -(-self.memory // (step * 2**30)) * step

    def __str__(self) -> str:
        return str(
            Fingerprint(
                self.sm, self.name, self.cuda,
                multiprocessors=self.multiprocessors, gigabytes=self.gigabytes, module=self.module,
            )
        )  # fmt: skip
