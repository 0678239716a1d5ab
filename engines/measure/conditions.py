"""Under what a timing was taken: power mode, clocks and temperature, of whatever the engine runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.machine import nvml
from engines.machine.jetson import Jetson, read_jetson
from engines.machine.nvml import Nvml, NvmlError
from engines.machine.sysfs import ROOT, number, text


def conditions(gpu: bool, root: Path = ROOT, library: str = nvml.LIBRARY) -> dict[str, Any]:
    """What can be read at this moment; nothing is left out in silence but what the machine does not have.

    A Jetson: power_mode, clocks_mhz by name (current, low, high), pinned, temperature_c, throttled.  Another GPU: see
    `Nvml.conditions`, or why_unknown.  A CPU: cpu_mhz and governor.
    """
    jetson = read_jetson(root)
    if jetson is not None:
        return _of_jetson(jetson)
    if not gpu:
        return _of_cpu(root)
    try:
        return Nvml(library).conditions()
    except NvmlError as error:
        return {"why_unknown": str(error)}


def say(state: dict[str, Any]) -> str:
    """In a line; empty where nothing is known."""
    words = []
    if state.get("power_mode"):
        words.append(f"power mode {state['power_mode']}")
    for name, (current, low, high) in state.get("clocks_mhz", {}).items():
        if name.startswith(("gpu", "memory")):
            words.append(f"{name.split()[0]} {current:.0f} of {low:.0f} to {high:.0f} MHz")
    if "gpu_mhz" in state:
        words.append(f"gpu {state['gpu_mhz']:.0f} of up to {state.get('gpu_max_mhz', 0):.0f} MHz")
    if "power_limit_w" in state:
        words.append(f"limit {state['power_limit_w']:.0f} W")
    if "pinned" in state:
        words.append("clocks pinned" if state["pinned"] else "clocks not pinned")
    if "temperature_c" in state:
        words.append(f"{state['temperature_c']:.0f} C")
    words += [f"throttled by {name}" for name in state.get("throttled", ())]
    return ", ".join(words)


def governor(root: Path = ROOT) -> str:
    """The frequency governor of the first core; a timing under ``powersave`` is not one under ``performance``."""
    return text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown"


def _of_jetson(jetson: Jetson) -> dict[str, Any]:
    gpu_and_cpu = [*jetson.clocks_of("gpu"), *jetson.clocks_of("cpu")]
    state: dict[str, Any] = {
        "power_mode": "" if jetson.mode is None else f"{jetson.mode_name} ({jetson.mode})",
        "clocks_mhz": {clock.name: [clock.current, clock.low, clock.high] for clock in jetson.clocks},
        "throttled": list(jetson.throttled),
    }
    if gpu_and_cpu:
        state["pinned"] = all(clock.pinned for clock in gpu_and_cpu)
    if jetson.temperatures:
        state["temperature_c"] = max(jetson.temperatures.values())
    return state


def _of_cpu(root: Path) -> dict[str, Any]:
    kilohertz = number(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    state: dict[str, Any] = {"governor": governor(root)}
    return state if kilohertz is None else {**state, "cpu_mhz": kilohertz / 1e3}
