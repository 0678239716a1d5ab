"""What a Jetson says of itself: board, releases, power mode, clocks, temperatures.

Everything is read from files that need no root, below a root folder, so that recorded trees test it.  Where each file
and its format come from: tests/engines/machine/trees/README.md.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from engines.machine.sysfs import ROOT, glob, number, packages, text

# Jetson Linux (L4T) -> JetPack.  Sources: developer.nvidia.com/embedded/jetpack-archive; dusty-nv/jetson-containers
# l4t_version.py and its pull requests 1179 (35.6.2) and 1676 (35.6.4); rbonghi/jetson_stats pull requests 706 (36.4.4)
# and 792 (38.4.0); OE4T/meta-tegra pull requests 2281 (39.2.0) and 2339 (39.2.1); 35.5.0, 36.4.7 and 36.5.0:
# package lists that owners of boards published (5.1.3-b29, 6.2.1+b38, 6.2.2+b24).
JETPACK = {
    "35.1.0": "5.0.2", "35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2", "35.5.0": "5.1.3", "35.6.2": "5.1.5",
    "35.6.4": "5.1.6", "36.2.0": "6.0 DP", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1",
    "36.4.7": "6.2.1", "36.5.0": "6.2.2",
    "38.2.0": "7.0", "38.4.0": "7.1", "39.2.0": "7.2", "39.2.1": "7.2.1",
}  # fmt: skip
JETPACK_OF_MAJOR = {34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}
METAPACKAGES = ("nvidia-jetpack", "nvidia-jetpack-runtime", "nvidia-jetpack-dev", "nvidia-tensorrt")
CHIPS = {"25": "tegra194", "35": "tegra234", "38": "tegra264"}  # the numbers of /sys/devices/soc0/soc_id
SOCS = {"tegra194": ("Xavier", (7, 2)), "tegra234": ("Orin", (8, 7)), "tegra264": ("Thor", (11, 0))}
_GPU_CLOCK = re.compile(r"\.(gpu|ga10b|gv11b)$|^gpu-gpc-\d+$")
_MEMORY_CLOCK = re.compile(r"^bwmgr$|emc")


@dataclass(frozen=True)
class Clock:
    """In MHz.  low and high: between which the governor may move it.  ceiling: the fastest the part can, 0: unknown."""

    name: str
    current: float
    low: float
    high: float
    ceiling: float = 0

    @property
    def pinned(self) -> bool:
        """As `jetson_clocks` leaves it: nothing to choose for the governor."""
        return self.low >= self.high


@dataclass(frozen=True)
class Jetson:
    """soc: such as ``tegra234``.  l4t: ``36.4.4``, or ``""``.  modes: nvpmodel's id -> name.  mode: the id in force.

    packages: Debian packages with versions.  temperatures: zone -> degrees Celsius.  throttled: what holds it back now.
    """

    board: str
    soc: str
    l4t: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    cuda: str = ""
    mode: int | None = None
    modes: dict[int, str] = field(default_factory=dict)
    clocks: tuple[Clock, ...] = ()
    temperatures: dict[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        return SOCS.get(self.soc, (self.soc, (0, 0)))[0]

    @property
    def sm(self) -> tuple[int, int]:
        """Compute capability of its GPU; (0, 0) when not known."""
        return SOCS.get(self.soc, ("", (0, 0)))[1]

    @property
    def major(self) -> int:
        """Of L4T: 35 is JetPack 5, 36 is 6, 38 and 39 are 7.  0 when not known."""
        return int(self.l4t.split(".")[0]) if self.l4t else 0

    @property
    def jetpack(self) -> str:
        """A metapackage's own word, else by L4T, else ``""``."""
        for package in METAPACKAGES:
            if package in self.packages:
                return re.split(r"[+-]", self.packages[package])[0]
        return JETPACK.get(self.l4t) or JETPACK_OF_MAJOR.get(self.major, "")

    @property
    def tensorrt(self) -> str:
        """Version of the TensorRT that apt installed, such as ``10.3.0.30``; ``""`` without."""
        for package in ("libnvinfer10", "libnvinfer11", "libnvinfer8", "libnvinfer-bin"):
            if package in self.packages:
                return self.packages[package].split("-")[0]
        return ""

    @property
    def mode_name(self) -> str:
        return "" if self.mode is None else self.modes.get(self.mode, f"mode {self.mode}")

    @property
    def fastest_mode(self) -> int | None:
        """The id of MAXN (not always 0: on an Orin Nano Super 0 is 15 W), else of the mode with the most watts."""
        return max(self.modes, key=lambda mode: _rank(self.modes[mode]), default=None)

    def clocks_of(self, part: str) -> list[Clock]:
        """part: ``gpu``, ``memory`` or ``cpu``."""
        return [clock for clock in self.clocks if clock.name.split()[0] == part]


def read_jetson(root: Path = ROOT) -> Jetson | None:
    """The Jetson whose files are below `root`; None on any other machine."""
    soc = _soc(root)
    if not soc:
        return None
    installed = packages(root)
    modes, default = _modes(text(root / "etc/nvpmodel.conf") or "")
    chosen = re.search(r"pmode:0*(\d+)", text(root / "var/lib/nvpmodel/status") or "")
    return Jetson(
        _board(root), soc=soc, l4t=_l4t(root, installed), packages=installed, cuda=_cuda(root),
        mode=int(chosen[1]) if chosen else default, modes=modes,
        clocks=tuple(_clocks(root)), temperatures=_temperatures(root), throttled=tuple(_throttled(root)),
    )  # fmt: skip


def _soc(root: Path) -> str:
    """As ``tegra234``; ``""`` on any other machine."""
    compatible = (text(root / "proc/device-tree/compatible") or "").split("\0")
    socs = [name.removeprefix("nvidia,") for name in compatible if name.startswith("nvidia,tegra")]
    if socs:
        return next((name for name in socs if name in SOCS), socs[-1])  # JetPack 5 says tegra234 and tegra23x
    # Containers do not see the device tree: Docker hides /sys/firmware, where it is.
    if text(root / "sys/devices/soc0/family") == "Tegra":
        chip = text(root / "sys/devices/soc0/soc_id") or ""
        return CHIPS.get(chip, f"tegra, chip {chip}")
    return ""


def _board(root: Path) -> str:
    return text(root / "proc/device-tree/model") or text(root / "sys/devices/soc0/machine") or "unknown board"


def read_module(root: Path = ROOT) -> str:
    """NVIDIA's number of the module that is on the board, as ``p3701-0005`` (Jetson AGX Orin 64GB); ``""`` without.

    Not the board's name, which is that of the carrier.  Containers do not see the device tree.
    """
    found = re.search(r"\+(p\d{4}-\d{4})", text(root / "proc/device-tree/compatible") or "")
    return found[1] if found else ""


def _l4t(root: Path, installed: dict[str, str]) -> str:
    """As ``36.4.4``.  The release file is not on every system; the package is."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text(root / "etc/nv_tegra_release") or "")
    if found:
        return f"{found[1]}.{found[2]}"
    return installed.get("nvidia-l4t-core", "").split("-")[0]


def _cuda(root: Path) -> str:
    """Of the toolkit, ``12.6.11``; ``""`` without."""
    try:
        body = json.loads(text(root / "usr/local/cuda/version.json") or "{}")
        return str(body["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return ""


def _modes(conf: str) -> tuple[dict[int, str], int | None]:
    modes = {int(number): name for number, name in re.findall(r"^< *POWER_MODEL +ID=(\d+) +NAME=(\S+)", conf, re.M)}
    default = re.search(r"^< *PM_CONFIG +DEFAULT=(\d+)", conf, re.M)
    return modes, int(default[1]) if default else None


def _rank(name: str) -> tuple[bool, bool, int]:
    watts = re.search(r"(\d+)W", name)
    return name.startswith("MAXN"), name == "MAXN_SUPER", int(watts[1]) if watts else 0


def _clocks(root: Path) -> list[Clock]:
    found = glob(root, "sys/class/devfreq/*") or [
        path for way in ("sys/devices", "sys/devices/platform", "sys/devices/platform/bus@0")
        for path in glob(root, f"{way}/*/devfreq/*")
    ]  # fmt: skip
    clocks = []
    for path in found:
        part = "gpu" if _GPU_CLOCK.search(path.name) else "memory" if _MEMORY_CLOCK.search(path.name) else ""
        values = [number(path / f"{which}_freq") for which in ("cur", "min", "max")]
        if part and None not in values:
            steps = [int(step) for step in (text(path / "available_frequencies") or "").split()]
            current, low, high = (value / 1e6 for value in values if value is not None)
            clocks.append(
                Clock(f"{part} {path.name}", current=current, low=low, high=high, ceiling=max(steps, default=0) / 1e6)
            )
    for path in glob(root, "sys/devices/system/cpu/cpufreq/policy*"):
        values = [number(path / f"scaling_{which}_freq") for which in ("cur", "min", "max")]
        if None not in values:
            current, low, high = (value / 1e3 for value in values if value is not None)
            clocks.append(
                Clock(
                    f"cpu {path.name}",
                    current=current,
                    low=low,
                    high=high,
                    ceiling=(number(path / "cpuinfo_max_freq") or 0) / 1e3,
                )
            )
    return clocks


def _temperatures(root: Path) -> dict[str, float]:
    """Zones that are switched off (cv*, and a sleeping GPU's) do not answer and are left out."""
    zones = {}
    for path in glob(root, "sys/class/thermal/thermal_zone*"):
        name, value = text(path / "type"), number(path / "temp")
        if name and value is not None and -40_000 < value < 200_000:
            zones[name.removesuffix("-thermal")] = value / 1e3
    return zones


def _throttled(root: Path) -> list[str]:
    alerts = [(text(path / "type") or "", number(path / "cur_state")) for path in
              glob(root, "sys/class/thermal/cooling_device*")]  # fmt: skip
    return [name for name, state in alerts if name.endswith("throttle-alert") and state]
