"""What a lowering looks at besides the windows that a build is verified on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engines.contract import Float32
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.precision.extremes import Bounds, answers, see
from pipeline.precision.verify import Stress


@dataclass(frozen=True)
class Views:
    """stress: inputs that gates see, with the fp32 logits; None for none.  bounds: (low, high) of the fp32 graph's
    tensors on stress inputs and photographs, which a half type has to hold as well.
    """

    stress: Stress | None = None
    bounds: Bounds = field(default_factory=dict)


def look(graph: OnnxGraph, half: str, stress: Sequence[Float32], photographs: Sequence[Float32] = ()) -> Views:
    """What the fp32 `graph` makes of stress inputs (`engines.proof.stress`) and of windows of the user's photographs.

    half: fp16 or bf16, for which ranges are taken; fp32 for none.  BF16 has the exponent of FP32: of the stress inputs
    the mosaic alone will do.  stress, photographs: (1, 3, h, w) each.
    """
    looked = {"fp16": len(stress), "bf16": 1}.get(half, 0)
    if not looked:
        return Views(Stress(stress, answers(graph, stress)))
    seen = see(graph, [*stress[:looked], *photographs])
    logits = [seen.logits[:looked]]
    if looked < len(stress):
        logits.append(answers(graph, stress[looked:]))
    return Views(Stress(stress, np.concatenate(logits)), seen.bounds)
