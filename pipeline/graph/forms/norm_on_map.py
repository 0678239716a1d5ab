"""``Reshape(Transpose(LayerNorm(x)))``: layer normalisation over the channels of a map, written out where the map is.

x are tokens (1, L, C) that become a map (1, C, H, W).  Mean and variance over C are the same numbers in either order,
so this is exact (Ba et al., arXiv 1607.06450: g (x - mean) / sqrt(var + eps) + b).  Where the tokens are turned *after*
the normalisation, NVIDIA's compiler makes two kernels of it with a map in FP32 between them; turned before, one.

Conditions: batch 1, over the last axis alone, constant scale (and bias), and whoever reads the tokens makes a map of
them, of one size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pipeline.graph.forms.turns import maps_of
from pipeline.graph.surgery import Editor, Outcome, exact, integer, number, opset, shape

NAME = "layer normalisation on the map that it becomes"


def rewrite(model: ir.Model) -> Outcome:
    """Where one node reads the map; `norm_on_shared_map` has the others."""
    return written_out(model, shared=False)


def written_out(model: ir.Model, shared: bool) -> Outcome:
    """shared: of the normalisations whose map several nodes read, else of those whose map one reads."""
    editor, applied, declined = Editor(model, "norm_on_map"), 0, []
    for node in list(model.graph):
        maps = maps_of(node.outputs[0]) if node.op_type == "LayerNormalization" else []
        if not maps or shared != (sum(len(each.uses()) for each in maps) > 1):
            continue
        reason = _reason(node, maps)
        if reason:
            declined.append(f"{node.name}: {reason}")
            continue
        made = _written_out(editor, node, shape(maps[0]) or (), opset(model))
        for each in maps[1:]:
            editor.replace(each, made)
        editor.stand_in(maps[0], made)
        applied += 1
    return Outcome(applied, tuple(declined))


def _reason(node: ir.Node, maps: list[ir.Value]) -> str:
    sizes = {shape(each) for each in maps}
    if integer(node, "axis", -1) % 3 != 2 or any(value.uses() for value in node.outputs[1:]):
        return "over more than the channels, or its mean is read too"
    if len(sizes) > 1:
        return f"its tokens become maps of several sizes, {sorted(map(str, sizes))}"
    if exact(node.inputs[1]) is None or (len(node.inputs) > 2 and node.inputs[2] and exact(node.inputs[2]) is None):
        return "its scale or bias is made at run time"
    return ""


@dataclass(frozen=True)
class _Writer:
    """Writes nodes in front of a normalisation."""

    editor: Editor
    before: ir.Node
    size: tuple[int, ...]
    version: int

    def __call__(self, op: str, *inputs: ir.Value) -> ir.Value:
        size = self.size if any(shape(value) == self.size for value in inputs) else (1, 1, *self.size[2:])
        return self.editor.node(self.before, op, inputs, size)

    def mean(self, value: ir.Value) -> ir.Value:
        """Over the channels.  The axes became an input with opset 18."""
        keep, axes = ir.AttrInt64("keepdims", 1), [1]
        inputs, attributes = [value], [keep]
        if self.version >= 18:
            inputs.append(self.constant(np.array(axes, np.int64), "axes"))
        else:
            attributes.append(ir.AttrInt64s("axes", axes))
        return self.editor.node(self.before, "ReduceMean", inputs, (1, 1, *self.size[2:]), attributes)

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        return self.editor.initializer(array, f"{self.before.name}/norm_on_map/{name}")


def _written_out(editor: Editor, node: ir.Node, size: tuple[int, ...], version: int) -> ir.Value:
    tokens, scale = node.inputs[0], exact(node.inputs[1])
    assert tokens is not None
    assert scale is not None
    bias = exact(node.inputs[2]) if len(node.inputs) > 2 else None
    write = _Writer(editor, node, size, version)
    epsilon = write.constant(np.array(number(node, "epsilon", 1e-5), np.float32), "epsilon")
    centred = write("Sub", x := editor.to_map(node, tokens, size), write.mean(x))
    variance = write.mean(write("Mul", centred, centred))
    made = write("Div", centred, write("Sqrt", write("Add", variance, epsilon)))
    made = write("Mul", made, write.constant(scale.astype(np.float32)[:, None, None], "scale"))
    if bias is None:
        return made
    return write("Add", made, write.constant(bias.astype(np.float32)[:, None, None], "bias"))
