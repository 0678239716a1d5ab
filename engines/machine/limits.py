"""What this process may use of the machine: a container's limits (control groups of version 1 and 2) are less than all,
and so is its share where several processes of ours are at work.

Files: docs.kernel.org/admin-guide/cgroup-v2.html, and cgroup-v1/memory.html there; cpu.cfs_* of v1 in
docs.kernel.org/scheduler/sched-bwc.html.  Everything is below a root folder, so that recorded trees test it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from engines.machine.share import MachineShare
from engines.machine.sysfs import ROOT, memory_kb, number, text

_UNLIMITED = 1 << 60  # version 1 says so with the largest number that is a multiple of the page size


def cores(root: Path = ROOT) -> int:
    """Threads that are worth starting: the cores this process may run on, and no more than its share of their time."""
    allowed = _allowed()
    return max(1, min((allowed, *_quotas(root), MachineShare.own().cores or allowed)))


def quota(root: Path = ROOT) -> int | None:
    """`cores`, where a share of their time makes them fewer than those this process may run on; else None.

    Libraries that choose their threads themselves see which cores they may run on, and not this.
    """
    return found if (found := cores(root)) < _allowed() else None


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache  # asked for every window; the cores, unlike the quota, are often set by the program itself
def _quotas(root: Path) -> tuple[int, ...]:
    return tuple(math.ceil(quota) for folder in _groups(root, "cpu") if (quota := _quota(folder)) is not None)


def total_memory(root: Path = ROOT) -> int | None:
    """Bytes: of the machine, or of the container where that has less; a share of them.  None where none are told."""
    machine = memory_kb(root).get("MemTotal")
    return _least(machine, [limit for folder in _groups(root, "memory") if (limit := _limit(folder)) is not None])


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that can be had without swapping, caches that the kernel would give up included; a share, None as above."""
    machine = memory_kb(root).get("MemAvailable")
    return _least(machine, [room for folder in _groups(root, "memory") if (room := _room(folder)) is not None])


def _least(kilobytes: int | None, bounds: list[int]) -> int | None:
    found = min([*([] if kilobytes is None else [1024 * kilobytes]), *bounds], default=None)
    return None if found is None else found // MachineShare.own().processes


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders that say what this process may use, from its own up: a group has no more than those it is in.

    In a container of its own namespace the path is ``/``, or one that only the host sees: then the mount's top counts.
    """
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        number_, names, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "/")
        if not names and number_ == "0":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in names.split(","):
            mounts = [root / "sys/fs/cgroup" / names, root / "sys/fs/cgroup" / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            yield from (mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1))


def _limit(folder: Path) -> int | None:
    found = [number(folder / name) for name in ("memory.max", "memory.limit_in_bytes")]
    limits = [limit for limit in found if limit is not None and 0 < limit < _UNLIMITED]
    return min(limits, default=None)


def _room(folder: Path) -> int | None:
    """Under the group's limit; pages of files that were not used lately are given up first."""
    limit = _limit(folder)
    used = number(folder / "memory.current") or number(folder / "memory.usage_in_bytes") or 0
    stat = dict(re.findall(r"^(\w+) (\d+)$", text(folder / "memory.stat") or "", re.M))
    # Version 1 counts the groups inside apart, but not in what is used.
    cached = int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)
    return None if limit is None else max(0, limit - used + cached)


def _quota(folder: Path) -> float | None:
    """Cores' worth of time."""
    new = re.fullmatch(r"(\d+) (\d+)", text(folder / "cpu.max") or "")
    quota, period = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
    if new and int(new[2]):
        return int(new[1]) / int(new[2])
    return quota / period if quota is not None and quota > 0 and period else None
