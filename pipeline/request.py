"""What `build-engine` was asked for, in records that the stages of a build read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path

from calib.data.datasets import Dataset
from calib.ranges.ranges import Ranges
from calib.ranges.split import Photograph, Split
from engines.contract import Float32, TensorRTOptions, UInt8
from engines.images.read import MAX_PIXELS
from engines.plan.strides import StrideShare
from engines.proof.agreement import GATES, Gate
from engines.spec import ModelSpec, Pixels
from engines.tiling.placement import Tiling
from pipeline.checkpoints.sources import SourceOptions


@dataclass(frozen=True)
class IslandOptions:
    """margin: how many times larger than measured an activation may get before it leaves the type's range.

    wide_sums: whether the device sums in fp32 whatever the type, as GPUs do, and ONNX's LayerNormalization by its
    definition (stash_type).  Then normalisations and what makes the logits are no islands: for the same sums whole maps
    would be written and read in fp32.  That logits are rounded to the type then is the gate's to judge.
    """

    margin: float = 4.0
    wide_sums: bool = False


@dataclass(frozen=True)
class Int8Options:
    """kind: int8 or fp8.  depthwise: quantise depthwise convolutions too.  skip: first outputs of nodes that stay out.

    unsigned: give activations that cannot be negative all 256 levels, with a zero point; not for TensorRT.
    backend: what it is built for, "" for no backend in particular.  board: whose roofline decides which layers gain, ""
    for the one that the backend's placement assumes.
    """

    kind: str = "int8"
    depthwise: bool = False
    unsigned: bool = False
    skip: Collection[str] = ()
    backend: str = ""
    board: str = ""


@dataclass(frozen=True)
class LowerOptions:
    """islands, smooth, bias: False switches the FP32 islands, SmoothQuant or bias correction off.

    rest: what an INT8 graph computes everything else in: fp32, fp16 or bf16; builds replace ``auto`` by what is native.
    rounding: of INT8 weights, ``nearest`` or ``learned``.  state: a file in which an interrupted build keeps what was
    learned; None keeps nothing.  photographs: windows (1, 3, h, w) of the calibration set, on which INT8 judges what it
    does to each layer; where there are none, those that the build is verified on serve.  kept: the graph is INT8 as it
    was given, and stays as it is.
    """

    islands: bool = True
    smooth: bool = True
    bias: bool = True
    rest: str = "auto"
    rounding: str = "nearest"
    kept: bool = False
    state: Path | None = None
    photographs: tuple[Float32, ...] = field(default=(), compare=False, repr=False)
    island: IslandOptions = field(default_factory=IslandOptions)
    int8: Int8Options = field(default_factory=Int8Options)


@dataclass(frozen=True)
class Budget:
    """max_drop: points that may be lost: of mIoU on `dataset`, else percent of the labels of the held-out windows.

    dataset: from the model's spec, because label ids are matched to its classes; None where nothing is labelled.
    """

    max_drop: float = 0.5
    dataset: Callable[[ModelSpec], Dataset] | None = None


@dataclass(frozen=True)
class BuildRequest:
    """What `build-engine` was asked for.

    precision: one of PRECISIONS, or ``auto``.  sample: (H, W, 3) uint8 photograph to verify on, and sample_file the
    file that it is from; None takes one that is held out of `photographs`, or without them renders a scene.
    max_error, min_agreement: in place of what the precision's gate has (see Gate); None keeps it.
    tail: whether the engine is to end before the decoder's tail, where that suits the backend.
    rewrites: whether to make the graph cheaper.  time_rewrites: also measure what each rewrite gains on this machine.
    ranges: measured before; or photographs: to measure on now, and those held out of that.  budget: for ``auto``, and
    for any precision where its data set has labels, which then decide.
    leave: whether an INT8 build that fails its gate leaves out the layers that cost most, until it passes.
    scored: whether what is built is scored on labels afterwards, so that logits are reported and do not decide.
    upright: whether photographs are turned as their EXIF orientation says, in calibration and verification.
    strides: what each stride keeps of the model's receptive field, for the report; () where nobody asked.
    batch: windows that the engine takes at once.  timing_cache: None keeps it beside `output`.
    """

    model: str
    output: Path
    tiling: Tiling
    _: KW_ONLY
    precision: str = "fp32"
    backend: str = "auto"
    threads: int = 0
    options: SourceOptions = field(default_factory=SourceOptions)
    sample: UInt8 | None = None
    sample_file: Photograph | None = None
    max_error: float | None = None
    min_agreement: float | None = None
    rewrites: bool = True
    tail: bool = False
    time_rewrites: bool = False
    ranges: Ranges | None = None
    photographs: Split | None = None
    lowering: LowerOptions = field(default_factory=LowerOptions)
    budget: Budget = field(default_factory=Budget)
    leave: bool = False
    scored: bool = False
    upright: bool = True
    max_pixels: int = MAX_PIXELS
    strides: tuple[StrideShare, ...] = ()
    batch: int = 1
    tensorrt: TensorRTOptions = field(default_factory=TensorRTOptions)
    timing_cache: Path | None = None

    def wanted(self, spec: ModelSpec) -> Pixels:
        """What photographs are read as."""
        return replace(spec.pixels, upright=self.upright)

    def gate(self, precision: str) -> Gate:
        """What `precision` has to keep: fp32 what it is, and what is scored on labels only to be finite."""
        gate = GATES[precision]
        if precision != "fp32" and (self.scored or self.budget.dataset is not None):
            gate = gate.but(math.inf, 0.0)
        elif precision in ("int8", "fp8") and self.leave:
            gate = gate.but(None, max(gate.min_labels, 1 - self.budget.max_drop / 100))
        return gate.but(self.max_error, self.min_agreement)
