"""The text that ties an engine to a GPU: bundles that are on disk hold it."""

from __future__ import annotations

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
    ],
)
def test_a_fingerprint_is_written_as_ever_and_read_back(info: GpuInfo, text: str) -> None:
    assert str(info) == text
    found = Fingerprint.parse(text)
    assert found == Fingerprint(info.sm, info.name, info.cuda)
    assert str(found) == text


@pytest.mark.parametrize("text", ["", "no GPU", "cpu x86_64 FP32+INT8", "cuda sm_90 NVIDIA H100"])
def test_what_is_no_gpu_is_told(text: str) -> None:
    assert Fingerprint.parse(text) is None
