"""What NVIDIA's compiler makes of the graphs in bundles for it: attentions fused, bytes, nothing written as fp32.

A change that moves these numbers is seen here, for better or worse: write down the new ones, which the failure shows,
and say in the commit what moved them.  They are of one release of the compiler, and of no other.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from calib.ranges.split import split
from engines.backends.tensorrt.tensorrt_rtx import backend
from engines.bundle import MODEL
from engines.roofline.kernels import KernelPlan
from engines.tiling.placement import Tiling
from pipeline.build import build_bundle
from pipeline.demo import IMAGES
from pipeline.request import BuildRequest

RELEASE = "TensorRT-RTX 1.7.1"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: nothing compiles here"
)


@dataclass(frozen=True)
class Expected:
    """Of a bundle for tensorrt_rtx.  side: of its window, in pixels.  kernels: at most.  megabytes: that they move, and
    fp32_megabytes: that they write as fp32, but for the logits, both within 2 %.  attentions: all of them fused.
    tail: whether the engine ends before the decoder's tail.
    """

    model: str
    precision: str
    side: int
    kernels: int
    megabytes: float
    fp32_megabytes: float
    attentions: int
    tail: bool = False

    def __str__(self) -> str:
        return f"{self.model.rpartition(':')[2]}-{self.precision}-{self.side}{'-tail' if self.tail else ''}"


EXPECTED = (
    Expected(
        "tests.models:tiny", "fp16", 256, kernels=65, megabytes=11.06, fp32_megabytes=0.56, attentions=4, tail=True
    ),
    Expected("tests.models:tiny", "fp16", 256, kernels=70, megabytes=12.85, fp32_megabytes=0.279, attentions=4),
    Expected("tests.models:tiny", "int8", 256, kernels=70, megabytes=12.22, fp32_megabytes=0.279, attentions=4),
    Expected("demo", "fp16", 512, kernels=112, megabytes=232.1, fp32_megabytes=0, attentions=8),
    Expected("demo", "fp16", 1024, kernels=108, megabytes=889.7, fp32_megabytes=0, attentions=8),
    Expected("demo", "fp16", 1024, kernels=106, megabytes=607.7, fp32_megabytes=0, attentions=8, tail=True),
)


def measured(wanted: Expected, plan: KernelPlan) -> Expected:
    fp32 = plan.fp32_written - sum(t.bytes for k in plan.kernels for t in k.writes if t.name == "logits")
    return replace(
        wanted, kernels=len(plan.kernels), megabytes=plan.bytes / 1e6, fp32_megabytes=fp32 / 1e6,
        attentions=plan.attentions,
    )  # fmt: skip


def _graph(wanted: Expected, folder: Path) -> Path:
    side = wanted.side
    request = BuildRequest(
        wanted.model, folder / "bundle", Tiling(side, side, side, side), precision=wanted.precision, tail=wanted.tail,
        backend="tensorrt_rtx", photographs=split([str(IMAGES)]) if wanted.precision == "int8" else None,
    )  # fmt: skip
    build_bundle(request, lambda step, text: None)
    return folder / "bundle" / MODEL


@pytest.mark.parametrize(
    "wanted", [pytest.param(each, id=str(each), marks=pytest.mark.slow if each.side > 256 else ()) for each in EXPECTED]
)
def test_the_plan_is_held(wanted: Expected, tmp_path: Path) -> None:
    plan = backend.kernel_plan(_graph(wanted, tmp_path))
    if not plan.source.startswith(RELEASE):
        pytest.skip(f"the numbers are of {RELEASE}, this is {plan.source}")
    found = measured(wanted, plan)
    assert (plan.fused_attentions, plan.attentions) == (wanted.attentions, wanted.attentions), found
    # A query's bias is one number a head and key: a product so narrow that it shares the kernel of another.
    assert plan.unknown <= wanted.attentions, found
    assert found.kernels <= wanted.kernels, found
    assert found.megabytes == pytest.approx(wanted.megabytes, rel=0.02), found
    assert found.fp32_megabytes == pytest.approx(wanted.fp32_megabytes, rel=0.02, abs=0.01), found
