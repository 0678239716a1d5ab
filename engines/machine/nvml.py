"""The management library of NVIDIA's driver (libnvidia-ml.so.1) by ctypes: power, energy, clocks, temperature.

API: docs.nvidia.com/deploy/nvml-api, group "Device Queries".  Power is in mW, and since Ampere the mean of the last
second; the energy counter (Volta and newer) is in mJ since the driver was loaded, and the better source.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
_GRAPHICS, _MEMORY = 0, 2  # nvmlClockType_t
_GPU_CORE = 0  # nvmlTemperatureSensors_t
_ARGUMENTS: dict[str, list[Any]] = {
    "nvmlInit_v2": [],
    "nvmlDeviceGetCount_v2": [ctypes.POINTER(ctypes.c_uint)],
    "nvmlDeviceGetHandleByIndex_v2": [ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p)],
    "nvmlDeviceGetHandleByUUID": [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)],
    "nvmlDeviceGetName": [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint],
    "nvmlDeviceGetPowerUsage": [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint)],
    "nvmlDeviceGetTotalEnergyConsumption": [ctypes.c_void_p, ctypes.POINTER(ctypes.c_ulonglong)],
    "nvmlDeviceGetEnforcedPowerLimit": [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint)],
    "nvmlDeviceGetClockInfo": [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_uint)],
    "nvmlDeviceGetMaxClockInfo": [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_uint)],
    "nvmlDeviceGetTemperature": [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_uint)],
}


class NvmlError(Exception):
    """What could not be asked, and why."""


class Nvml:
    """One GPU.  Raises NvmlError where there is no driver, no GPU, or no telling which one is used."""

    def __init__(self, library: str = LIBRARY, environment: Mapping[str, str] = os.environ) -> None:
        self._library = _load(library)
        self._call("nvmlInit_v2")
        self._device = self._choose(environment)
        self.name = self._name(self._device)

    def milliwatts(self) -> float | None:
        return self._ask("nvmlDeviceGetPowerUsage", ctypes.c_uint)

    def millijoules(self) -> float | None:
        """Since the driver was loaded; None before Volta."""
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)

    def conditions(self) -> dict[str, Any]:
        """What it runs at: MHz, degrees Celsius, watts; what the GPU does not tell is left out."""
        limit = self._ask("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint)
        values = {
            "gpu_mhz": self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint, _GRAPHICS),
            "gpu_max_mhz": self._ask("nvmlDeviceGetMaxClockInfo", ctypes.c_uint, _GRAPHICS),
            "memory_mhz": self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint, _MEMORY),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", ctypes.c_uint, _GPU_CORE),
            "power_limit_w": None if limit is None else limit / 1e3,
        }
        return {name: value for name, value in values.items() if value is not None}

    def _choose(self, environment: Mapping[str, str]) -> ctypes.c_void_p:
        """CUDA's first GPU.  CUDA may number GPUs otherwise than NVML, which goes by their place on the bus."""
        wanted = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        handle = ctypes.c_void_p()
        if wanted.startswith("GPU-"):
            self._call("nvmlDeviceGetHandleByUUID", wanted.encode(), ctypes.byref(handle))
            return handle
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        handles = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            self._call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
            handles.append(handle)
        if not handles:
            raise NvmlError("NVML sees no GPU")
        if len(handles) == 1:
            return handles[0]
        index = int(wanted or 0) if wanted.isdigit() or not wanted else len(handles)  # MIG-..., or none at all
        same = len({self._name(handle) for handle in handles}) == 1
        if (same or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID") and index < len(handles):
            return handles[index]
        raise NvmlError("several GPUs, and no telling which one is CUDA's first; set CUDA_DEVICE_ORDER=PCI_BUS_ID")

    def _name(self, device: ctypes.c_void_p) -> str:
        buffer = ctypes.create_string_buffer(96)
        self._call("nvmlDeviceGetName", device, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def _ask(self, name: str, kind: Any, *arguments: int) -> float | None:
        """One number about the GPU, or None where it does not tell (NVML_ERROR_NOT_SUPPORTED and others)."""
        value = kind()
        function = getattr(self._library, name, None)
        if function is None or function(self._device, *arguments, ctypes.byref(value)):
            return None
        return float(value.value)

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name, None)
        status = -1 if function is None else function(*arguments)
        if status:
            raise NvmlError(f"NVML: {name} failed (code {status})")


@cache
def _load(library: str) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(library)
    except OSError as error:
        raise NvmlError(f"no NVIDIA driver ({error})") from error
    for name, arguments in _ARGUMENTS.items():
        function = getattr(loaded, name, None)  # an old driver may lack some
        if function is not None:
            function.argtypes, function.restype = arguments, ctypes.c_int
    return loaded
