"""The text that ties an engine to a GPU: bundles that are on disk hold it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engines.gpu.info import Fingerprint, GpuInfo


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (GpuInfo("Orin", (8, 7), 12060, 8 << 30, True), "cuda sm_87 Orin, driver for CUDA 12.6"),
        (
            GpuInfo("NVIDIA H100 80GB HBM3", (9, 0), 13000, 80 << 30, False),
            "cuda sm_90 NVIDIA H100 80GB HBM3, driver for CUDA 13.0",
        ),
        (
            GpuInfo("NVIDIA RTX PRO 6000, 96 GB", (12, 0), 12080, 96 << 30, False),
            "cuda sm_120 NVIDIA RTX PRO 6000, 96 GB, driver for CUDA 12.8",
        ),
        (
            GpuInfo("Orin", (8, 7), 12060, int(61.3 * 2**30), True, 16, "p3701-0005"),
            "cuda sm_87 Orin [16 SM, 64 GB, p3701-0005], driver for CUDA 12.6",
        ),
        (
            GpuInfo("NVIDIA RTX PRO 6000, 96 GB", (12, 0), 12080, int(95.6 * 2**30), False, 188),
            "cuda sm_120 NVIDIA RTX PRO 6000, 96 GB [188 SM, 96 GB], driver for CUDA 12.8",
        ),
    ],
)
def test_a_fingerprint_is_written_as_ever_and_read_back(info: GpuInfo, text: str) -> None:
    assert str(info) == text
    found = Fingerprint.parse(text)
    assert found is not None
    assert (found.sm, found.name, found.driver) == (info.sm, info.name, info.cuda)
    assert (found.multiprocessors, found.module) == (info.multiprocessors, info.module)
    assert str(found) == text


@pytest.mark.parametrize("text", ["", "no GPU", "cpu x86_64 FP32+INT8", "cuda sm_90 NVIDIA H100"])
def test_what_is_no_gpu_is_told(text: str) -> None:
    assert Fingerprint.parse(text) is None


@pytest.mark.parametrize(
    ("seen", "sold"),
    [
        (7.44, 8), (3.6, 4), (15.29, 16), (30.0, 32), (61.3, 64), (122.8, 128), (10.75, 12), (9.8, 10), (22.05, 24),
        (23.6, 24), (39.4, 40), (44.5, 48), (47.5, 48), (79.1, 80), (93.6, 96), (80, 80), (0.5, 1),
    ],
)  # fmt: skip
def test_memory_is_what_the_chips_have_whatever_the_driver_keeps(seen: float, sold: int) -> None:
    """Of boards and cards as drivers report them, with and without error correction."""
    assert GpuInfo("", (8, 7), 12060, int(seen * 2**30), True).gigabytes == sold


AGX = Fingerprint((8, 7), "Orin", (12, 6), 16, 64, "p3701-0005")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (AGX, True),
        (replace(AGX, multiprocessors=8), True),  # a power mode that puts half of them to sleep
        (replace(AGX, driver=(13, 0)), True),  # judged apart
        (replace(AGX, multiprocessors=8, gigabytes=16, module="p3767-0000"), False),  # Orin NX
        (replace(AGX, multiprocessors=8, gigabytes=16, module=""), False),
        (replace(AGX, module=""), True),  # in a container
        (Fingerprint((8, 7), "Orin", (12, 6)), True),  # of an earlier version: not known, so it is verified anew
        (replace(AGX, name="Orin Nano"), False),
        (replace(AGX, sm=(8, 6)), False),
    ],
)
def test_gpus_of_one_name_are_told_apart(other: Fingerprint, same: bool) -> None:
    assert AGX.same_model(other) is other.same_model(AGX) is same
