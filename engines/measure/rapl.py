"""Energy counters of x86 processors (Running Average Power Limit), from /sys/class/powercap.

Kernel documentation: power/powercap/powercap.rst.  A counter of microjoules a package, which starts again from 0 after
max_energy_range_uj: at full power every few minutes to an hour, so that it has to be read more often than that.
Since CVE-2020-8694 only root may read it.
"""

from __future__ import annotations

from pathlib import Path

from engines.machine.sysfs import ROOT, glob, number, text


class Rapl:
    """Joules of all packages together since the first reading; cores and memory are parts of them, and not added."""

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._ranges = [number(zone / "max_energy_range_uj") or 0 for zone in zones]
        self._last = [number(zone / "energy_uj") for zone in zones]
        self._sum = 0
        self.source = f"RAPL {' + '.join(text(zone / 'name') or zone.name for zone in zones)}"

    def joules(self) -> float | None:
        """None when a counter does not answer any more."""
        for index, zone in enumerate(self._zones):
            now, last = number(zone / "energy_uj"), self._last[index]
            if now is None or last is None:
                return None
            self._sum += now - last if now >= last else now - last + self._ranges[index]
            self._last[index] = now
        return self._sum / 1e6


def find_rapl(root: Path = ROOT) -> tuple[Rapl | None, str]:
    """The counters, or None and why there are none."""
    zones = glob(root, "sys/class/powercap/intel-rapl:*")
    zones = [zone for zone in zones if (text(zone / "name") or "").startswith("package")]
    if not zones:
        return None, "no RAPL energy counter in /sys/class/powercap"
    if any(number(zone / "energy_uj") is None for zone in zones):
        return None, "RAPL may be read by root alone; run it with sudo, or: sudo chmod a+r " + " ".join(
            f"/sys/class/powercap/{zone.name}/energy_uj" for zone in zones
        )
    return Rapl(zones), ""
