"""What PyTorch raises on a GPU, as the errors of this project: no memory left, a lost context, anything else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engines.errors import DeployError, GpuLostError

# The errors of the CUDA runtime after which every later call fails too: driver_types.h, "The device cannot be used" or
# "The process must be terminated and relaunched".
_LOST = {
    214: "uncorrectable ECC error", 220: "uncorrectable NVLink error", 700: "illegal memory access",
    702: "launch timed out", 709: "context is destroyed", 710: "device-side assert", 714: "hardware stack error",
    715: "illegal instruction", 716: "misaligned address", 717: "global/shared address space",
    718: "invalid program counter", 719: "unspecified launch failure",
}  # fmt: skip
_NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@contextmanager
def reported(name: str, doing: str) -> Iterator[None]:
    """Turn what torch raises inside into DeployError, or GpuLostError: one line that names the backend and `doing`.

    torch.OutOfMemoryError, torch.AcceleratorError and all that torch.compile raises are RuntimeErrors.
    """
    try:
        yield
    except RuntimeError as error:
        raise translated(name, doing, error) from error


def translated(name: str, doing: str, error: RuntimeError) -> DeployError:
    text = _first_line(error)
    if lost(error):
        return GpuLostError(
            f"backend {name}: the GPU's context is lost while {doing}: {text}; start again, and if it comes back run "
            "with CUDA_LAUNCH_BLOCKING=1 to see which operation it is"
        )
    if type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _NO_MEMORY):
        return DeployError(
            f"backend {name}: no GPU memory left while {doing}: {text}; nvidia-smi shows who holds it: end that, or "
            "build with a smaller --tile"
        )
    return DeployError(f"backend {name}: failed while {doing}: {text}")


def lost(error: RuntimeError) -> bool:
    """Whether nothing more can run in this process; torch.AcceleratorError carries the code, older errors the text."""
    if getattr(error, "error_code", None) in _LOST:
        return True
    text = str(error)
    return "CUDA error" in text and any(words in text for words in _LOST.values())


def _first_line(error: RuntimeError) -> str:
    """With the one after it where it ends in a colon, as what torch.compile raises does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]
