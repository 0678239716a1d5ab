"""Whether there is a GPU, and what its driver says of it.  Nothing else imports pycuda."""

from __future__ import annotations

import importlib.util
from typing import Any

from engines.errors import DeployError
from engines.gpu import driver
from engines.gpu.info import GpuInfo
from engines.machine.jetson import read_module


def unavailable() -> str | None:
    """None where a GPU can be used, otherwise what is missing and what to do.  Makes no context."""
    reason = driver.absent()
    if reason:
        return reason
    if importlib.util.find_spec("pycuda") is None:
        return "GPU: pycuda is not installed; install the CUDA toolkit and run: pip install pycuda"
    return None


def gpu_info() -> GpuInfo:
    """The first GPU that this process sees, without a context.  Raises DeployError without driver, GPU or pycuda."""
    return describe(pycuda())


def pycuda() -> Any:
    """Its module `driver`, initialised.  Raises DeployError."""
    reason = unavailable()
    if reason:
        raise DeployError(reason)
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise DeployError(
            f"GPU: pycuda does not load: {error}; build it against this machine's CUDA: "
            "pip install --force-reinstall --no-binary pycuda --no-cache-dir pycuda"
        ) from error
    try:
        cuda.init()
    except cuda.Error as error:
        raise DeployError(f"GPU: the driver does not start: {error}; look at nvidia-smi") from error
    return cuda


def describe(cuda: Any) -> GpuInfo:
    """The first GPU that this process sees.  Raises DeployError."""
    try:
        device = cuda.Device(0)
        integrated, sm = device.get_attribute(cuda.device_attribute.INTEGRATED), device.compute_capability()
        multiprocessors = device.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT)
        return GpuInfo(
            device.name(),
            sm=sm,
            driver=cuda.get_driver_version(),
            memory=device.total_memory(),
            integrated=bool(integrated),
            coherent=bool(device.get_attribute(cuda.device_attribute.PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES)),
            multiprocessors=multiprocessors,
            module=read_module() if integrated else "",
        )
    except cuda.Error as error:
        raise DeployError(f"GPU: the driver does not describe it: {error}; look at nvidia-smi") from error
