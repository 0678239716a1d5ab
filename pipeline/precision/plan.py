"""What each node of a graph computes in, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from engines.errors import DeployError

EIGHT_BIT = ("int8", "fp8")  # of PRECISIONS, those that are written as QuantizeLinear and DequantizeLinear


@dataclass(frozen=True)
class NodePlan:
    """One node, named by its first output.  precision: fp32, fp16, bf16, int8 or fp8.  reason: with its numbers.

    headroom: the largest finite number of the type over the largest that was seen in a tensor that it reads or writes;
    None where it keeps out of the type, or nothing but 0 was seen.
    fine: whether the 8-bit weight has one scale an output channel; otherwise it has one for all.
    """

    output: str
    op: str
    precision: str
    reason: str = ""
    headroom: float | None = None
    fine: bool = True


@dataclass(frozen=True)
class PrecisionPlan:
    """target: the precision that nodes have unless there is a reason against it.

    unsigned: whether INT8 gives activations that cannot be negative all 256 levels.
    """

    target: str
    nodes: tuple[NodePlan, ...]
    unsigned: bool = False

    @cached_property
    def _by_output(self) -> dict[str, NodePlan]:
        return {node.output: node for node in self.nodes}

    def precision(self, output: str) -> str | None:
        """Of the node that makes the tensor `output`; None for a node that the plan does not speak of."""
        node = self._by_output.get(output)
        return None if node is None else node.precision

    def eight_bit(self, output: str) -> bool:
        """Whether the node that makes the tensor `output` is quantised."""
        return self.precision(output) in EIGHT_BIT

    def fine(self, output: str) -> bool:
        """Whether the weight of that node has one scale an output channel."""
        node = self._by_output.get(output)
        return node is None or node.fine

    @property
    def islands(self) -> tuple[NodePlan, ...]:
        """The nodes that stay out of the target precision, each with its reason."""
        return tuple(node for node in self.nodes if node.precision != self.target)

    @property
    def tightest(self) -> tuple[str, float] | None:
        """The node with the least headroom, and that; None where none is known."""
        known = [(node.output, node.headroom) for node in self.nodes if node.headroom is not None]
        return min(known, key=lambda pair: pair[1], default=None)

    def with_everything(self) -> PrecisionPlan:
        """The same plan with every island given up, apart from those that ONNX has no kernel type for."""
        return PrecisionPlan(
            self.target,
            tuple(
                node if node.reason.startswith(UNDEFINED) else NodePlan(node.output, node.op, self.target)
                for node in self.nodes
            ),
        )

    def summary(self) -> str:
        """``312 nodes bf16; fp32: 30 LayerNormalization, 8 Softmax``"""
        inside = sum(node.precision == self.target for node in self.nodes)
        by_precision: dict[str, Counter[str]] = {}
        for node in self.islands:
            by_precision.setdefault(node.precision, Counter())[node.op] += 1
        rest = (
            f"; {precision}: " + ", ".join(f"{count} {op}" for op, count in sorted(ops.items()))
            for precision, ops in sorted(by_precision.items())
        )
        tight = "" if self.tightest is None else f"; least headroom {self.tightest[1]:.3g}x at {self.tightest[0]}"
        return f"{inside} nodes {self.target}{''.join(rest)}{tight}"

    def to_json(self) -> dict[str, Any]:
        return {"target": self.target, "unsigned": self.unsigned, "nodes": [asdict(node) for node in self.nodes]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PrecisionPlan:
        try:
            return cls(
                str(data["target"]), tuple(NodePlan(**node) for node in data["nodes"]), bool(data.get("unsigned"))
            )
        except (KeyError, TypeError) as error:
            raise DeployError(f"precision plan: {error!r} while reading it; build the bundle again") from error


UNDEFINED = "ONNX defines no"
