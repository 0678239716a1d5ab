"""One machine, and several processes of ours on it: what each of them takes of its cores and its memory.

It is told them in the environment, which the processes that they start inherit.  Nothing is handed on where one ends.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from engines.errors import DeployError

VARIABLE = "EDGESEG_SHARE"  # cores/processes


@dataclass(frozen=True)
class MachineShare:
    """cores: that this process takes at most; None: all that it may run on.  processes: that divide the memory."""

    cores: int | None = None
    processes: int = 1

    @classmethod
    def own(cls) -> MachineShare:
        """Of this process.  Raises DeployError where the variable holds anything else."""
        text = os.environ.get(VARIABLE)
        if text is None:
            return cls()
        found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
        if found is None:
            raise DeployError(f"{VARIABLE}: got {text!r}, expected cores/processes, such as 4/2; edgeseg sets it")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of(cls, cores: int, processes: int) -> MachineShare:
        """One of `processes` that are alike and divide `cores`, and what memory this one has: one core at least."""
        return cls(max(1, cores // processes), processes * cls.own().processes)

    def environment(self) -> dict[str, str]:
        """The variable that makes it a process's own."""
        return {} if self.cores is None else {VARIABLE: f"{self.cores}/{self.processes}"}
