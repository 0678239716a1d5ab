"""Which quantised layers are tried together: an attention or feed-forward, or a stretch of convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import constant, output_name
from pipeline.precision.plan import EIGHT_BIT, PrecisionPlan

MOST = 16  # blocks; neighbours are joined beyond that, so that a search takes minutes and not hours


@dataclass(frozen=True)
class Block:
    """layers: first outputs of the nodes that are quantised together, in graph order."""

    name: str
    layers: tuple[str, ...]


def blocks_of(graph: OnnxGraph, plan: PrecisionPlan, most: int = MOST) -> tuple[Block, ...]:
    """The INT8 layers of `plan`, cut at every normalisation and at every sum of two activations."""
    quantised = {node.output for node in plan.nodes if node.precision in EIGHT_BIT}
    runs: list[list[str]] = [[]]
    for node in graph.model.graph:
        if output_name(node) in quantised:
            runs[-1].append(output_name(node))
        elif runs[-1] and (node.op_type == "LayerNormalization" or _joins(node)):
            runs.append([])
    runs = [run for run in runs if run]
    while len(runs) > most:
        index = min(range(len(runs) - 1), key=lambda i: len(runs[i]) + len(runs[i + 1]))
        runs[index : index + 2] = [runs[index] + runs[index + 1]]
    return tuple(Block(f"{run[0]}..{run[-1]}" if len(run) > 1 else run[0], tuple(run)) for run in runs)


def _joins(node: ir.Node) -> bool:
    return node.op_type == "Add" and all(constant(value) is None for value in node.inputs)
