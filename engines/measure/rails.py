"""A Jetson's own power monitors, read from sysfs: INA3221 (three rails a chip) and, on Thor, an INA238 at the input.

Kernel documentation: hwmon/ina3221.rst (in[123]_label, in[123]_input in mV, curr[123]_input in mA; in4 to in7 are shunt
voltages and curr4 is the sum of the others: not rails), hwmon/ina238.rst (power1_input in uW).  Up to JetPack 4 the
driver was an iio one (ina3221x) with rail_name_N and in_powerN_input in mW.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.machine.sysfs import ROOT, glob, number, text

# What adds up to the whole module (VIN: the board), best first.  Never all rails: VDD_IN is what the others are taken
# from.  AGX Orin has no input rail.  Its VDDQ_VDD2_1V8AO is measured at the 5 V of VIN_SYS_5V0 and so left out.
# Sources: Jetson Linux Developer Guide, "Platform Power and Performance", tables of INA3221 channels; device trees
# tegra234-p3701.dtsi, tegra234-p3767.dtsi of Linux; forums.developer.nvidia.com topics 73608 (POM_5V_IN), 81016 (AGX
# Xavier), 200883 (VDD_IN); rbonghi/jetson_stats pull request 900 (VIN).
TOTALS = (
    ("VIN",),
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
Read = Callable[[], float | None]


@dataclass(frozen=True)
class Rails:
    """The rails whose sum is the module's power."""

    names: tuple[str, ...]
    reads: tuple[Read, ...]

    @property
    def source(self) -> str:
        return f"{'INA238' if self.names == ('VIN',) else 'INA3221'} {' + '.join(self.names)}"

    def milliwatts(self) -> float | None:
        """None when one of them does not answer: a smaller sum would be wrong."""
        values = [read() for read in self.reads]
        return None if None in values else sum(value for value in values if value is not None)


def find_rails(root: Path = ROOT) -> tuple[Rails | None, str]:
    """The rails to add, or None and why there are none."""
    rails = _rails(root)
    if not rails:
        return None, "no INA3221 power monitor in /sys/class/hwmon"
    for names in TOTALS:
        if all(name in rails for name in names):
            return Rails(names, tuple(rails[name] for name in names)), ""
    return None, f"none of the rails {', '.join(sorted(rails))} is known to be the total"


def _rails(root: Path) -> dict[str, Read]:
    rails: dict[str, Read] = {}
    for chip in glob(root, "sys/class/hwmon/hwmon*"):
        for label in glob(chip, "in[0-9]*_label"):
            channel = label.name.removeprefix("in").removesuffix("_label")
            volts, amperes = chip / f"in{channel}_input", chip / f"curr{channel}_input"
            own = chip / f"power{channel}_input"
            read = _microwatts(own) if own.exists() else _product(volts, amperes)
            _add(rails, text(label), read)
        if text(chip / "name") == "ina238":  # one channel: the chip itself has the label, if there is one
            _add(rails, text(chip / "label") or "VIN", _microwatts(chip / "power1_input"))
    for label in glob(root, "sys/bus/i2c/drivers/ina3221x/*/iio*/rail_name_*"):
        power = label.parent / f"in_power{label.name.removeprefix('rail_name_')}_input"
        _add(rails, text(label), _milliwatts(power))
    return rails


def _add(rails: dict[str, Read], name: str | None, read: Read) -> None:
    if name and name not in rails and name != "NC" and read() is not None:
        rails[name] = read


def _product(volts: Path, amperes: Path) -> Read:
    def read() -> float | None:
        millivolts, milliamperes = number(volts), number(amperes)
        return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e3

    return read


def _microwatts(path: Path) -> Read:
    def read() -> float | None:
        value = number(path)
        return None if value is None else value / 1e3

    return read


def _milliwatts(path: Path) -> Read:
    return lambda: number(path)
