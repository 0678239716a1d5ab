"""What GPUs can do at most, from NVIDIA's data sheets: the bandwidth of their memory and the peaks of their arithmetic.

Peaks are **dense**.  Data sheets of Ampere and later print them with 2:4 sparsity, which doubles them and which nothing
here uses; where only the sparse number is printed, this is half of it.  A multiply-add is two operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Board:
    """gb_per_s: of memory, 1e9 bytes a second.  peaks: 1e12 operations a second by the type of the operands; a type
    that the board has no tensor cores for is not in it, but fp32, which is its CUDA cores': engines are built with TF32
    off.  source: where the numbers are from, and how they were derived.
    """

    name: str
    gb_per_s: float
    peaks: Mapping[str, float]
    source: str

    def lacks(self, types: Iterable[str]) -> tuple[str, ...]:
        """Those of `types` that it cannot multiply."""
        return tuple(sorted({kind for kind in types if kind not in self.peaks}))

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "peaks": dict(self.peaks)}


def _board(name: str, gb_per_s: float, source: str, **peaks: float) -> Board:
    return Board(name, gb_per_s, peaks, source)


# An Orin's streaming multiprocessor multiplies 1024 halves or 2048 INT8 in a cycle, as an A100's does: that is what its
# data sheet's INT8 number says of 16 of them at 1.3 GHz.  The smaller Orins print INT8 alone.
_ORIN = "FP16 is half of INT8 by the architecture, FP32 two operations a cycle of each CUDA core; no FP8"
BOARDS = (
    _board(
        "Orin Nano Super", 102.0,
        f"Jetson Orin Nano Super data sheet: 102 GB/s, 67 sparse and 33 dense INT8 TOPS, 17 FP16 TFLOPS, "
        f"1024 CUDA cores at 1020 MHz; {_ORIN}",
        fp32=2.1, fp16=16.7, bf16=16.7, int8=33.4,
    ),
    _board(
        "Orin NX 16GB", 102.4,
        "Jetson Orin NX series data sheet (DS-10712-001): 102.4 GB/s, 1024 CUDA cores at 918 MHz, of its 100 sparse "
        f"INT8 TOPS 60 on the GPU (the rest on its DLAs); without the power modes called Super; {_ORIN}",
        fp32=1.9, fp16=15.0, bf16=15.0, int8=30.1,
    ),
    _board(
        "AGX Orin 64GB", 204.8,
        "Jetson AGX Orin series data sheet (DS-10662-001): 204.8 GB/s, on the GPU 170 sparse INT8 TOPS or 85 sparse "
        f"FP16 TFLOPS, 5.3 FP32 TFLOPS of CUDA cores; {_ORIN}",
        fp32=5.3, fp16=42.5, bf16=42.5, int8=85.0,
    ),
    _board(
        "AGX Thor", 273.0,
        "Jetson Thor series data sheet (T5000): 273 GB/s, 1035 sparse FP8 TFLOPS, 8.06 FP32 TFLOPS of CUDA cores; INT8 "
        "as FP8 and FP16 half of it, by the architecture",
        fp32=8.1, fp16=258.8, bf16=258.8, int8=517.5, fp8=517.5,
    ),
    _board(
        "T4", 320.0,
        "T4 data sheet: 320 GB/s, 65 FP16 TFLOPS, 130 INT8 TOPS, 8.1 FP32 TFLOPS; Turing has no sparsity, BF16 or FP8",
        fp32=8.1, fp16=65.0, int8=130.0,
    ),
    _board(
        "L4", 300.0,
        "L4 data sheet: 300 GB/s; 30.3 FP32 TFLOPS; with sparsity 242 FP16 and BF16 and 485 FP8 TFLOPS, 485 INT8 TOPS",
        fp32=30.3, fp16=121.0, bf16=121.0, int8=242.5, fp8=242.5,
    ),
    _board(
        "RTX 4090", 1008.0,
        "NVIDIA Ada GPU Architecture whitepaper, appendix A: 1008 GB/s; dense 82.6 FP32, 165.2 BF16, 330.3 "
        "FP16 and 660.6 FP8 (both with FP16 accumulation; half of it with FP32 accumulation), 660.6 INT8",
        fp32=82.6, fp16=330.3, bf16=165.2, int8=660.6, fp8=660.6,
    ),
    _board(
        "H100 SXM", 3350.0,
        "H100 data sheet, SXM: 3.35 TB/s; 67 FP32 TFLOPS; with sparsity 1979 FP16 and BF16 and 3958 FP8 TFLOPS, "
        "3958 INT8 TOPS",
        fp32=67.0, fp16=989.5, bf16=989.5, int8=1979.0, fp8=1979.0,
    ),
)  # fmt: skip
