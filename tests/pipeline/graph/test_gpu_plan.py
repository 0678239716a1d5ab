"""What NVIDIA's compiler makes of the pipeline's graphs, held: attentions fused, bytes, nothing written as fp32.

A change of a graph that moves these numbers is seen here, for better or worse: write down the new ones, which the
failure shows, and say in the commit what moved them.  They are of one release of the compiler, and of no other.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import pytest

from engines.backends.tensorrt.tensorrt_rtx import backend
from engines.roofline.kernels import KernelPlan
from tests.engines.backends.tensorrt.graphs import made

RELEASE = "TensorRT-RTX 1.7.1"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: nothing compiles here"
)


@dataclass(frozen=True)
class Expected:
    """network: of tests.engines.backends.tensorrt.graphs.  side: of the window, in pixels.  megabytes: that all kernels
    move; fp32_megabytes: that they write as fp32, but for the logits.  fused: of `attentions`.
    """

    network: str
    precision: str
    side: int
    kernels: int
    megabytes: float
    fp32_megabytes: float
    fused: int
    attentions: int

    def __str__(self) -> str:
        return f"{self.network}-{self.precision}-{self.side}"


EXPECTED = (
    Expected("segformer", "fp16", 256, kernels=85, megabytes=17.96, fp32_megabytes=1.36, fused=3, attentions=4),
    Expected("segformer", "int8", 256, kernels=92, megabytes=18.78, fp32_megabytes=2.93, fused=3, attentions=4),
    Expected("demo", "fp16", 512, kernels=146, megabytes=393.3, fp32_megabytes=21.5, fused=6, attentions=8),
)  # fmt: skip


def measured(wanted: Expected, plan: KernelPlan) -> Expected:
    fp32 = plan.fp32_written - sum(t.bytes for k in plan.kernels for t in k.writes if t.name == "logits")
    return Expected(
        wanted.network, wanted.precision, wanted.side, kernels=len(plan.kernels), megabytes=plan.bytes / 1e6,
        fp32_megabytes=fp32 / 1e6, fused=plan.fused_attentions, attentions=plan.attentions,
    )  # fmt: skip


@pytest.mark.parametrize(
    "wanted", [pytest.param(e, id=str(e), marks=pytest.mark.slow if e.network == "demo" else ()) for e in EXPECTED]
)
def test_the_plan_is_held(wanted: Expected) -> None:
    plan = backend.kernel_plan(made(wanted.network, wanted.precision, wanted.side).path)
    if not plan.source.startswith(RELEASE):
        pytest.skip(f"the numbers are of {RELEASE}, this is {plan.source}")
    found = measured(wanted, plan)
    assert (found.fused, found.attentions, plan.unknown) == (wanted.fused, wanted.attentions, 0), found
    assert found.kernels <= wanted.kernels, found
    assert found.megabytes == pytest.approx(wanted.megabytes, rel=0.02), found
    assert found.fp32_megabytes == pytest.approx(wanted.fp32_megabytes, rel=0.02), found
