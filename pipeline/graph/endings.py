"""What a given network does with its logits at its end, and the network without it.

Windows are averaged as logits, so a network that ends in probabilities or labels is used at the logits before them.
With p = softmax(x), log p and x differ by one number a pixel for all channels: the same labels, the same softmax, in
the mean over windows too.  So it is exact to use x where nothing but a change of place or type follows the softmax, and
log p where the probabilities are resized or otherwise mixed; likewise x and log(p / (1 - p)) of a sigmoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from engines.contract import Float32
from engines.errors import DeployError, GateError
from engines.spec import THRESHOLD, cut_of
from engines.tiling.core import labels_of
from pipeline.graph.surgery import Editor, integer, integers, opset, scalar, shape, text

PROBABILITIES = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
_COMPARISONS = frozenset({"Greater", "GreaterOrEqual"})
_DECISIONS = _COMPARISONS | {"ArgMax", "ArgMin", "TopK", "Hardmax", "Less", "LessOrEqual", "Equal", "Round", "OneHot"}
_LAYERS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})  # before these lies the network itself
_SHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_PLACES = _SHAPES | {"Identity", "Cast", "Transpose"}
LEAST = 1e-7  # probability whose logarithm is taken, and distance from 1: what float32 tells apart there
TIE = 1e-5  # between two probabilities, or two logits over the largest
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_COUNTS = {ir.DataType.INT8: 128, ir.DataType.BOOL: 1}  # labels that fit; all others take 255


@dataclass(frozen=True)
class Ending:
    """what: that was cut, or otherwise undone, in words.  threshold: that the network itself compares with, or None.

    labels: whether it made labels, not probabilities.
    """

    what: str
    threshold: float | None = None
    labels: bool = False


def cut_ending(model: ir.Model) -> Ending | None:
    """Let `model`, whose shapes are known, output its logits; None where it does already.

    Raises DeployError where it outputs labels that no logits can be found for.
    """
    if len(model.graph.outputs) != 1:
        return None
    links, node = _walk(model.graph.outputs[0], _PLACES)
    found: Ending | None = None
    if node is not None and node.op_type in {"ArgMax", "TopK"}:
        found = _cut_labels(model, links, node)
    elif node is not None and node.op_type in _COMPARISONS:
        found = _cut_comparison(model, links, node)
    else:
        found = _cut_probabilities(model)
    if found is None:
        _refuse_decisions(model)
        return None
    passes.RemoveUnusedNodesPass()(model)
    return found


def competing(channels: int) -> str:
    """What independent probabilities come to where one label a pixel is asked for."""
    if channels == 1:
        return ""
    return (
        f"; its {channels} channels compete: the largest wins with its share of a softmax, none is background, and "
        "where they overlap one is left"
    )


def require_same_labels(ending: Ending, logits: Float32, end: NDArray[np.generic]) -> None:
    """Raises GateError unless logits (1, K, h, w) give the labels of what the whole network says, off its ties."""
    threshold = (ending.threshold or THRESHOLD) if logits.shape[1] == 1 else None
    if ending.labels:
        wanted, largest = end.reshape(logits.shape[2:]), max(1.0, float(np.abs(logits).max()))
        margin = _margin(logits[0], 0.0 if threshold is None else cut_of(threshold)) / largest
    else:
        scores = end.astype(np.float32).reshape(logits.shape[1:])
        wanted, margin = scores.argmax(0) if threshold is None else scores[0] > THRESHOLD, _margin(scores, THRESHOLD)
    clear = margin > TIE
    wrong = (labels_of(logits, threshold)[0] != wanted) & clear
    if wrong.any():
        raise GateError(
            f"model: {wrong.sum()} of {clear.sum()} labels of its logits are not those of its own ending; export it "
            "without that ending"
        )


def _margin(scores: Float32, cut: float) -> Float32:
    """(K, h, w) -> (h, w): the largest less the second, or of one channel how far from the cut."""
    if len(scores) == 1:
        distance: Float32 = np.abs(scores[0] - np.float32(cut))
        return distance
    ranked = np.partition(scores, len(scores) - 2, axis=0)
    margin: Float32 = ranked[-1] - ranked[-2]
    return margin


def logarithm(op: str) -> str:
    """How probabilities are undone that are mixed after `op`."""
    return f"{op}, then probabilities are resized: their {'log-odds' if op == 'Sigmoid' else 'logarithms'} are used"


def _walk(value: ir.Value | None, through: frozenset[str]) -> tuple[list[ir.Node], ir.Node | None]:
    """Upwards from `value`: the nodes of these types, and the first that is of another."""
    links: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None:
        if node.domain:
            return links, None
        if node.op_type not in through:
            return links, node
        links.append(node)
        value = node.inputs[0]
    return links, None


def _cut_probabilities(model: ir.Model) -> Ending | None:
    output = model.graph.outputs[0]
    links, node = _walk(output, _PLACES | {"Resize", "Upsample", "Slice"})
    if node is None or node.op_type not in PROBABILITIES or not _keep_floats(links):
        return None
    if len(shape(output) or ()) != 4:
        return _cut_squeezed(model, links, node)
    mixed = any(link.op_type in {"Resize", "Upsample"} and text(link, "mode", "nearest") != "nearest" for link in links)
    if node.op_type != "Sigmoid":
        channel = _channel(output, links)
        if channel is None or channel not in _normalised(model, node):
            return None
    channels = (shape(output) or (0, 0))[1]
    more = competing(channels) if node.op_type == "Sigmoid" else ""
    if mixed and node.op_type != "LogSoftmax":
        _append_logarithm(model, node.op_type)
        return Ending(logarithm(node.op_type) + more)
    if mixed or node.inputs[0] is None or node.inputs[0].producer() is None:
        return None
    _bypass(model, node)
    return Ending(f"{node.op_type} cut, the logits before it are used{more}")


def _cut_squeezed(model: ir.Model, links: Sequence[ir.Node], node: ir.Node) -> Ending | None:
    """One sigmoid, whose axis of channels was taken away."""
    scores, value = shape(node.inputs[0]), node.inputs[0]
    same = all(link.op_type in _PLACES for link in links) and _keep_labels(links, node, 1)
    if node.op_type != "Sigmoid" or scores is None or value is None or len(scores) != 4 or scores[1] != 1 or not same:
        return None
    _output(model, value)
    return Ending("Sigmoid cut, the logits before it are used")


def _keep_floats(links: Sequence[ir.Node]) -> bool:
    return all(value.dtype in _FLOATS for link in links for value in link.outputs)


def _channel(output: ir.Value, links: Sequence[ir.Node]) -> int | None:
    """The axis, above the links, that is the output's axis 1; None where it is not one axis."""
    axis = 1
    for link in links:
        before, after = shape(link.inputs[0]), shape(link.outputs[0])
        if before is None or after is None:
            return None
        if link.op_type == "Transpose":
            axis = integers(link, "perm", tuple(reversed(range(len(before)))))[axis]
        elif before[: axis + 1] != after[: axis + 1]:
            behind = len(after) - axis  # counted from the end, where a Reshape keeps the last axes
            if before[-behind:] != after[-behind:]:
                return None
            axis = len(before) - behind
    return axis


def _normalised(model: ir.Model, node: ir.Node) -> set[int]:
    """The axes over which a softmax sums; until opset 12 all from `axis` on."""
    rank = len(shape(node.inputs[0]) or ())
    if rank == 0:
        return set()
    if opset(model) < 13:
        return set(range(integer(node, "axis", 1) % rank, rank))
    return {integer(node, "axis", -1) % rank}


def _bypass(model: ir.Model, node: ir.Node) -> None:
    assert node.inputs[0] is not None
    Editor(model, "ending").replace(node.outputs[0], node.inputs[0])


def _append_logarithm(model: ir.Model, op: str) -> None:
    """log p, or log p - log(1 - p), of the output."""
    editor, output = Editor(model, "ending"), model.graph.outputs[0]
    last = output.producer()
    assert last is not None

    def insert(op_type: str, *inputs: ir.Value) -> ir.Value:
        return editor.insert(None, op_type, inputs, name=f"{last.name or last.op_type}/ending/{op_type.lower()}",
                             shape=output.shape)  # fmt: skip

    def clipped_logarithm(value: ir.Value) -> ir.Value:
        least = editor.initializer(np.float32(LEAST).reshape(1), "ending/least")
        return insert("Log", insert("Max", value, least))

    made = clipped_logarithm(output)
    if op == "Sigmoid":
        one = editor.initializer(np.ones(1, np.float32), "ending/one")
        made = insert("Sub", made, clipped_logarithm(insert("Sub", one, output)))
    output.name, made.name = editor.free(f"{output.name}/ending/probabilities"), output.name
    model.graph.outputs[0] = made


def _cut_labels(model: ir.Model, links: Sequence[ir.Node], node: ir.Node) -> Ending | None:
    """An ArgMax over channels, or a TopK of one, and before it a softmax or sigmoid, which keeps the order."""
    scores = shape(node.inputs[0])
    if scores is None or len(scores) != 4:
        return None
    axis = integer(node, "axis", 0 if node.op_type == "ArgMax" else -1) % 4
    channels = scores[axis]
    if axis not in (1, 3) or not _keep_labels(links, node, channels) or not _is_largest(model, links, node):
        return None
    what = node.op_type
    value = node.inputs[0]
    assert value is not None
    if axis == 3:
        perm = ir.AttrInt64s("perm", [0, 3, 1, 2])
        order = tuple(scores[i] for i in (0, 3, 1, 2))
        value = Editor(model, "ending").node(node, "Transpose", [value], order, [perm])
    _output(model, value)
    before = _cut_probabilities(model)
    more = f"; before it {before.what}" if before else ""
    return Ending(f"{what} cut, the scores before it are used{more}", labels=True)


def _is_largest(model: ir.Model, links: Sequence[ir.Node], node: ir.Node) -> bool:
    if node.op_type == "ArgMax":
        return True
    read = links[-1].inputs[0] if links else model.graph.outputs[0]
    return (
        len(node.inputs) > 1
        and read is node.outputs[1]
        and scalar(node.inputs[1]) == 1
        and integer(node, "largest", 1) == 1
    )


def _keep_labels(links: Sequence[ir.Node], node: ir.Node, channels: int) -> bool:
    """Whether the links leave a map of these labels in its order, however many axes of length one are around it."""
    for link in links:
        before, after = shape(link.inputs[0]), shape(link.outputs[0])
        kind = link.outputs[0].dtype
        if before is None or after is None or (kind is not None and channels > _COUNTS.get(kind, 255)):
            return False
        if link.op_type == "Transpose":
            perm = integers(link, "perm", tuple(reversed(range(len(before)))))
            kept = [axis for axis in perm if before[axis] > 1]
            if kept != sorted(kept):
                return False
    return True


def _cut_comparison(model: ir.Model, links: Sequence[ir.Node], node: ir.Node) -> Ending | None:
    """One channel, or its sigmoid, greater than a number: the number is the threshold."""
    scores, number = shape(node.inputs[0]), scalar(node.inputs[1])
    if number is None or scores is None or len(scores) != 4 or scores[1] != 1 or not _keep_labels(links, node, 1):
        return None
    value = node.inputs[0]
    _, source = _walk(value, frozenset({"Identity"}))
    sigmoid = source is not None and source.op_type == "Sigmoid"
    threshold = number if sigmoid else 1 / (1 + exp(-number))
    if not 0 < threshold < 1 or value is None or value.producer() is None:
        return None
    _output(model, value)
    if sigmoid and source is not None:
        _bypass(model, source)
    return Ending(f"{node.op_type} cut, the logits before it are used at its threshold, {threshold:g}", threshold, True)


def _output(model: ir.Model, value: ir.Value) -> None:
    """Let the graph output `value` under the name of what it output."""
    old = model.graph.outputs[0]
    editor = Editor(model, "ending")
    old.name, value.name = editor.free(f"{old.name}/ending/cut"), old.name
    model.graph.outputs[0] = value


def _refuse_decisions(model: ir.Model) -> None:
    """Labels that are made in a way that was not recognised must not pass for logits."""
    queue, seen = [model.graph.outputs[0]], set()
    while queue:
        node = queue.pop().producer()
        if node is None or node in seen or node.op_type in _LAYERS:
            continue
        seen.add(node)
        if node.op_type in _DECISIONS:
            raise DeployError(
                f"model: ends in labels ({node.op_type}, and what follows it), expected logits or probabilities, "
                "which can be averaged over windows; export it without that ending"
            )
        queue += [value for value in node.inputs if value is not None]
