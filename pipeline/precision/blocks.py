"""Which quantised layers are tried together: an attention or feed-forward, or a stretch of convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from pipeline.graph.view import GraphView
from pipeline.precision.plan import PrecisionPlan

MOST = 16  # blocks; neighbours are joined beyond that, so that a search takes minutes and not hours


@dataclass(frozen=True)
class Block:
    """layers: first outputs of the nodes that are quantised together, in graph order."""

    name: str
    layers: tuple[str, ...]


def blocks_of(shown: GraphView, plan: PrecisionPlan, most: int = MOST) -> tuple[Block, ...]:
    """The INT8 layers of `plan`, cut at every normalisation and at every sum of two activations."""
    quantised = {node.output for node in plan.nodes if node.precision == "int8"}
    runs: list[list[str]] = [[]]
    for node in shown.nodes:
        if node.output[0] in quantised:
            runs[-1].append(node.output[0])
        elif runs[-1] and (node.op_type == "LayerNormalization" or _joins(shown, node)):
            runs.append([])
    runs = [run for run in runs if run]
    while len(runs) > most:
        index = min(range(len(runs) - 1), key=lambda i: len(runs[i]) + len(runs[i + 1]))
        runs[index : index + 2] = [runs[index] + runs[index + 1]]
    return tuple(Block(f"{run[0]}..{run[-1]}" if len(run) > 1 else run[0], tuple(run)) for run in runs)


def _joins(shown: GraphView, node: onnx.NodeProto) -> bool:
    return node.op_type == "Add" and not any(name in shown.constants for name in node.input)
