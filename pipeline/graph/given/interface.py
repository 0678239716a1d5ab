"""Where the image goes in and the scores come out of a user's graph, and the same graph with one common interface.

Image: (N, C, H, W) or, as TensorFlow has it, (N, H, W, C); float, half or bytes; sizes known or not.  Scores likewise.
The graph gets a float image (1, C, H, W), and gives a map (1, K, h, w): what lies between is a Cast and a Transpose,
which cancel against those that the exporter wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from engines.errors import DeployError
from engines.spec import MAX_BANDS, MAX_CLASSES
from pipeline.graph.surgery import Editor, constant, integer, integers, only_use, shape

FIRST, LAST = "channels first", "channels last"
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
BYTES = frozenset({ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.INT64})


@dataclass(frozen=True)
class Face:
    """What a file takes.  order: FIRST or LAST.  size: of the tensor that it takes, (1, C, H, W) or (1, H, W, C)."""

    channels: int
    order: str
    dtype: ir.DataType
    size: tuple[int, int, int, int]

    @property
    def integer(self) -> bool:
        return self.dtype in BYTES

    def __str__(self) -> str:
        return f"{self.order}, {self.dtype.name.lower()}"


def face_of(model: ir.Model, window: tuple[int, int], path: Path) -> Face:
    """How the file takes an image of `window`.  Raises DeployError where it takes something else."""
    value = _image(model, path)
    dims = [dim if isinstance(dim, int) and dim > 0 else None for dim in value.shape or ()]
    if len(dims) != 4:
        raise DeployError(f"model {path}: got an input of rank {len(dims)}, expected (N, C, H, W) or (N, H, W, C)")
    if value.dtype not in FLOATS | BYTES:
        kind = "undefined" if value.dtype is None else value.dtype.name.lower()
        raise DeployError(f"model {path}: got an input of {kind}, expected an image of floats, halves or bytes")
    order = _order(dims, value)
    channels = dims[1 if order == FIRST else 3] or _channels_of(value) or 3
    size = (1, channels, *window) if order == FIRST else (1, *window, channels)
    for axis, (dim, wanted) in enumerate(zip(dims, size, strict=True)):
        if dim is not None and dim != wanted:
            got = [d or str(name) for d, name in zip(dims, value.shape or (), strict=True)]
            height, width = (dims[2], dims[3]) if order == FIRST else (dims[1], dims[2])
            tile = f"--tile {height}" if height == width else f"--tile {height or window[0]}x{width or window[1]}"
            advice = f"give the matching {tile}" if axis else "export it for one image"
            raise DeployError(f"model {path}: input is {got}, expected {list(size)}; {advice}")
    if channels > MAX_BANDS:
        raise DeployError(f"model {path}: got {channels} channels in, expected 1 to {MAX_BANDS}")
    return Face(channels, order, value.dtype, size)


def as_floats(face: Face) -> Face:
    """The same of a file whose halves have become floats; bytes stay bytes."""
    return face if face.integer else replace(face, dtype=ir.DataType.FLOAT)


def _image(model: ir.Model, path: Path) -> ir.Value:
    """The one input that is read; those that nothing reads are dropped."""
    graph = model.graph
    if len(graph.inputs) > 1:
        for value in [value for value in graph.inputs if not value.uses()]:
            graph.inputs.remove(value)
    if len(graph.inputs) != 1:
        raise DeployError(f"model {path}: got inputs {[v.name for v in graph.inputs]}, expected one image")
    return graph.inputs[0]


def _order(dims: Sequence[int | None], value: ir.Value) -> str:
    """By the sizes: the smaller of two numbers is the channels; where they say nothing, by the first Transpose."""
    first, last = dims[1], dims[3]
    if first is not None and last is not None:
        return FIRST if first <= last else LAST
    if last is not None and last <= MAX_BANDS:
        return LAST
    if first is None:
        node = only_use(value)
        if node is not None and node.op_type == "Cast":
            node = only_use(node.outputs[0])
        if node is not None and node.op_type == "Transpose" and integers(node, "perm", ()) == _TO_FIRST:
            return LAST
    return FIRST


def _channels_of(value: ir.Value) -> int | None:
    """What the convolutions that read `value`, perhaps cast or transposed, were made for."""
    for node, _ in value.uses():
        if node.op_type == "Conv" and (weight := constant(node.inputs[1])) is not None and weight.ndim == 4:
            return int(weight.shape[1]) * integer(node, "group", 1)
        if node.op_type in {"Cast", "Transpose"} and (found := _channels_of(node.outputs[0])):
            return found
    return None


def choose_output(model: ir.Model, name: str | None, path: Path) -> None:
    """Keep one output: the one there is, or the value called `name`.  Raises DeployError, with those to choose from."""
    outputs = model.graph.outputs
    if name is None and len(outputs) == 1:
        return
    chosen = next((value for value in _values(model) if value.name == name), None) if name is not None else None
    if chosen is None:
        found = ", ".join(f"{value.name} {_said(value)}" for value in outputs)
        got = f"{len(outputs)} outputs" if name is None else f"--output-name {name}"
        raise DeployError(f"model {path}: got {got}, expected one of its outputs: {found}; give --output-name NAME")
    while outputs:
        outputs.pop()
    outputs.append(chosen)
    passes.RemoveUnusedNodesPass()(model)


def _values(model: ir.Model) -> list[ir.Value]:
    """The outputs, and then what else is computed."""
    return [*model.graph.outputs, *(value for node in model.graph for value in node.outputs)]


def _said(value: ir.Value) -> str:
    return "of unknown size" if value.shape is None else f"({', '.join(str(dim) for dim in value.shape)})"


def set_image(model: ir.Model, face: Face) -> None:
    """Let the graph take a float image (1, C, H, W), and forget the sizes that were inferred for another."""
    graph, editor = model.graph, Editor(model, "given")
    old = graph.inputs[0]
    for value in (value for node in graph for value in node.outputs):
        value.shape = ir.Shape([None] * len(value.shape)) if value.is_graph_output() and value.shape else None
    if face.order == FIRST and not face.integer:
        old.shape = ir.Shape(face.size)
        return
    first, name = graph[0], str(old.name)
    old.name = editor.free(f"{name}/given/file")
    image = ir.Value(name=name, shape=ir.Shape((1, face.channels, *_window(face))), type=ir.TensorType(face.dtype))
    made = image
    if face.integer:
        image.type = ir.TensorType(ir.DataType.FLOAT)
        made = editor.insert(first, "Cast", [made], name=f"{name}/given/cast", shape=image.shape, dtype=face.dtype,
                             attributes=[ir.AttrInt64("to", int(face.dtype))])  # fmt: skip
    if face.order == LAST:
        made = editor.insert(first, "Transpose", [made], name=f"{name}/given/transpose", shape=ir.Shape(face.size),
                             dtype=face.dtype, attributes=[ir.AttrInt64s("perm", _TO_LAST)])  # fmt: skip
    ir.convenience.replace_all_uses_with(old, made)
    graph.inputs[0] = image
    _spare_the_bytes(model)


def _window(face: Face) -> tuple[int, int]:
    return face.size[2:] if face.order == FIRST else face.size[1:3]


def _spare_the_bytes(model: ir.Model) -> None:
    """An image of whole numbers as floats need not become integers to become floats again, however it is turned."""
    kinds = {int(kind) for kind in FLOATS}
    node = only_use(model.graph.inputs[0])
    if node is None or node.op_type != "Cast":
        return
    inner, chain = node, []
    while (following := only_use(inner.outputs[0])) is not None and following.op_type in {"Transpose", "Identity"}:
        chain.append(following)
        inner = following
    ends = [user for user, _ in inner.outputs[0].uses()]
    if ends and all(end.op_type == "Cast" and integer(end, "to", 0) in kinds for end in ends):
        for moved in chain:
            moved.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        for end in (node, *ends):
            assert end.inputs[0] is not None
            ir.convenience.replace_all_uses_with(end.outputs[0], end.inputs[0])
        for end in (*ends, node):
            model.graph.remove(end, safe=True)


def as_map(model: ir.Model, window: tuple[int, int], face: Face) -> bool:
    """Let the graph output scores (1, K, h, w), where it outputs them as (1, h, w, K), (1, h w, K) or (1, K, h w).

    Returns whether their channels came last.
    """
    output = model.graph.outputs[0]
    dims = shape(output)
    if dims is None or output.dtype not in FLOATS or dims[0] != 1 or (len(dims) == 3 and _covers(dims[1:], window)):
        return False
    sizes: tuple[int, ...] | None = None  # (1, h, w, K) of what comes with the channels last
    if len(dims) == 4 and _is_last(dims, window, face):
        sizes = dims
    elif len(dims) == 3 and dims[2] <= MAX_CLASSES and (grid := _grid(dims[1], window)):
        sizes = (1, *grid, dims[2])
    elif len(dims) == 3 and (grid := _grid(dims[2], window)):
        _append(model, "Reshape", output, (1, dims[1], *grid))
    if sizes is not None:
        value = output if sizes == dims else _append(model, "Reshape", output, sizes)
        _append(model, "Transpose", value, (1, sizes[3], *sizes[1:3]))
    return sizes is not None


def with_channel(model: ir.Model, window: tuple[int, int]) -> None:
    """Let the graph output (1, 1, h, w) where it outputs (1, h, w): one channel, whose axis was taken away."""
    output = model.graph.outputs[0]
    dims = shape(output)
    if dims is not None and output.dtype in FLOATS and len(dims) == 3 and dims[0] == 1 and _covers(dims[1:], window):
        _append(model, "Reshape", output, (1, 1, *dims[1:]))


def _append(model: ir.Model, op: str, value: ir.Value, size: Sequence[int]) -> ir.Value:
    """One more node at the end, which takes over the output and its name."""
    editor, last = Editor(model, "given"), value.producer()
    assert last is not None
    inputs, attributes = [value], []
    if op == "Reshape":
        inputs.append(editor.initializer(np.array(size, np.int64), f"{value.name}/given/size"))
    else:
        attributes.append(ir.AttrInt64s("perm", _TO_FIRST))
    made = editor.insert(None, op, inputs, name=f"{value.name}/given/{op.lower()}", shape=ir.Shape(size),
                         dtype=value.dtype or ir.DataType.FLOAT, attributes=attributes)  # fmt: skip
    value.name, made.name = editor.free(f"{value.name}/given/file"), value.name
    model.graph.outputs[0] = made
    return made


def _is_last(dims: Sequence[int], window: tuple[int, int], face: Face) -> bool:
    first, last = _covers(dims[2:], window), _covers(dims[1:3], window)
    return last and dims[3] <= MAX_CLASSES and (not first or face.order == LAST)


def _covers(size: Sequence[int], window: tuple[int, int]) -> bool:
    """Whether a map of this size lies over the window: in its proportions, or less the same border on all sides."""
    (height, width), (full_height, full_width) = size, window
    same = height * full_width == width * full_height
    return min(size) > 1 and (same or full_height - height == full_width - width)


def _grid(count: int, window: tuple[int, int]) -> tuple[int, int] | None:
    """(h, w) of so many pixels, where that is the window at a stride of 1, 2, 4, ..., 32."""
    grids = [(window[0] // stride, window[1] // stride) for stride in (1, 2, 4, 8, 16, 32)]
    return next((grid for grid in grids if grid[0] * grid[1] == count), None)
