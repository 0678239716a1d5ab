"""What quantised layers read on the user's photographs, and what a way to quantise them costs there, layer by layer.

One pass of the float32 graph over the windows keeps rows of every layer's input at sampled places.  The error of a
layer is then that of its output alone, its input rounded as it will be: mean |Q(x / f) q(f W) + d - x W|^2 over
mean |x W|^2, with the factors f of SmoothQuant and the correction d of a bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engines.contract import BuildConfig, Float32
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import constant, image, output_name
from pipeline.precision.layer_rows import matrix, places, rows, spread
from pipeline.precision.observe import float_shapes, quantizable_tensors, split, watching
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.quantise import F32, grid
from pipeline.precision.sign import never_negative

ROWS = 4096  # of each layer, over all windows: twice the widest layer of SegFormer-B2 and more
BUDGET = 512 << 20  # bytes of activations held at once
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """fitted, held: by a layer's first output, (groups, n, d) float32: rows to learn from, and others to judge on.

    windows: how many were looked at; of one window alone both are the same rows.  unsigned: as of the plan.
    """

    fitted: Mapping[str, Float32]
    held: Mapping[str, Float32]
    windows: int
    unsigned: bool = False

    def error(
        self, node: ir.Node, amax: float, stored: str, used: F32, *, factor: F64 | None = None,
        correction: F64 | None = None,
    ) -> float:  # fmt: skip
        """On the held rows.  amax: of the input as it is quantised: divided by `factor`, one number a channel of it.

        stored: the type of the scales.  used: the weight that the rounded input is multiplied with, in the node's
        layout.  correction: (outputs,) what is added to each.
        """
        weight = constant(node.inputs[1])
        assert weight is not None, "only layers with constant weights are quantised"
        x = self.held[output_name(node)]
        step, zero = grid(amax, stored, self.unsigned and never_negative(node.inputs[0]))
        exact = x @ matrix(node, weight.astype(np.float32))
        x = x if factor is None else x / spread(factor, x.shape)
        got = (np.clip(np.rint(x / step), -128 - zero, 127 - zero) * step) @ matrix(node, used)
        if correction is not None:
            got = got + correction.reshape(len(got), 1, -1)
        return float(np.square(got - exact, dtype=np.float64).mean() / max(float(np.square(exact).mean()), 1e-30))


def gather(graph: OnnxGraph, plan: PrecisionPlan, windows: Sequence[Float32], seed: int = 0) -> Evidence:
    """Rows of every INT8 layer of `plan`; every fourth window is held back.  Computed by OpenVINO in float32."""
    layers = [node for node in graph.model.graph if plan.eight_bit(output_name(node))]
    count = -(-ROWS // len(windows))
    kept: dict[str, list[Float32]] = {output_name(node): [] for node in layers}
    wanted = {str(node.inputs[0].name) for node in layers if node.inputs[0] is not None}
    source = str(image(graph.model).name)
    observed = [item for item in quantizable_tensors(graph) if item.name in wanted]
    for group in split(observed, float_shapes(graph), BUDGET):
        names = [item.name for item in group]
        watched = [name for name in names if name != source]
        readers = [node for node in layers if node.inputs[0] is not None and node.inputs[0].name in names]
        with watching(graph, watched or [str(graph.model.graph.outputs[0].name)], BuildConfig()) as run:
            for index, window in enumerate(windows):
                rng = np.random.default_rng([seed, index])
                values = dict(zip(watched, run(window), strict=False)) | {source: window}
                for node in readers:
                    value = values[str(node.inputs[0].name)]  # type: ignore[union-attr]
                    kept[output_name(node)].append(rows(node, value, places(node, count, rng)))
    held = range(3, len(windows), 4) if len(windows) > 3 else range(len(windows) - 1, len(windows))
    fitted = [i for i in range(len(windows)) if i not in held] or list(held)
    return Evidence(
        {name: np.concatenate([parts[i] for i in fitted], 1) for name, parts in kept.items()},
        {name: np.concatenate([parts[i] for i in held], 1) for name, parts in kept.items()},
        len(windows),
        unsigned=plan.unsigned,
    )
