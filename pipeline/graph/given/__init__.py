"""A user's own .onnx becomes the graph that everything else here works on: one float image in, one map of logits out.

The order matters: the image gets its size before anything infers another's, because shapes that a graph computes at run
time become constants only then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from engines.errors import DeployError
from pipeline.graph.endings import Ending, cut_ending
from pipeline.graph.export import fold
from pipeline.graph.given.dynamic import undo_dynamic
from pipeline.graph.given.file import is_onnx, read_file, readable
from pipeline.graph.given.halves import as_float32, as_stored
from pipeline.graph.given.integers import quantised, to_qdq
from pipeline.graph.given.interface import as_floats, as_map, choose_output, face_of, set_image, with_channel
from pipeline.graph.given.normalisation import pixels_taken
from pipeline.graph.given.original import Original
from pipeline.graph.onnx_graph import OnnxGraph, Step, from_model
from pipeline.graph.proto import settle

__all__ = ["Given", "import_onnx", "is_onnx", "read_onnx"]


@dataclass(frozen=True)
class Given:
    """graph: what the file computes, from its image (1, C, H, W) to its logits.  original: the file itself, to judge.

    ending: what the file did with its logits, or None.  remarks: how it was read, where that is not plain.
    pixels: 255.0 or 1.0 where the network normalises pixels of 0..255 or 0..1 itself, else None.
    halves: the types narrower or wider than float32 that the file computes in, "" for none.
    dynamic: which operators of the file quantise as it runs, "" for none.
    widened: of such files, the same with every number a float32, and nothing else changed.
    quantised: how its activations are quantised, "" where they are floats.
    turned: whether the scores of the file have their channels last.
    """

    graph: OnnxGraph
    original: Original
    ending: Ending | None = None
    remarks: tuple[str, ...] = ()
    pixels: float | None = None
    halves: str = ""
    quantised: str = ""
    turned: bool = False
    widened: Original | None = None
    dynamic: str = ""


def import_onnx(path: Path, window: tuple[int, int]) -> OnnxGraph:
    """Read a user's .onnx and fix its input at (1, C, *window).  Sizes that the file fixes must agree with that."""
    return read_onnx(path, window).graph


def read_onnx(path: Path, window: tuple[int, int], output: str | None = None) -> Given:
    """As `import_onnx`, with all that was found on the way.  output: which one, where there are several.

    Raises DeployError.
    """
    model = read_file(path)
    with readable(path):
        choose_output(model, output, path)
        face = face_of(model, window, path)
        original = Original(model.clone(), face, str(model.graph.outputs[0].name))
        dynamic = undo_dynamic(model)
        kind = quantised(model)
        halves = as_float32(model)
        widened = replace(original, model=model.clone(), face=as_floats(face)) if halves or dynamic else None
        to_qdq(model)
        pixels = 255.0 if face.integer else pixels_taken(model)
        set_image(model, face)
        asked = model.graph.outputs[0]
        if asked.shape is None or asked.type is None:  # the exporter left it out, or it is a value inside
            seen = next(original.run([np.zeros((1, face.channels, *window), np.float32)]))
            asked.shape = ir.Shape([None] * seen.ndim)
            asked.type = asked.type or ir.TensorType(as_stored(ir.DataType.from_numpy(seen.dtype)))
    folded, left_out = _folded(model, path)
    turned = as_map(folded, window, face)
    if turned:
        folded, left_out = fold(folded)
        settle(folded)
    ending = cut_ending(folded)
    with_channel(folded, window)
    steps = () if ending is None else (Step(f"ending: {ending.what}", len(folded.graph), places=1),)
    graph = from_model(folded, (*steps, Step("imported .onnx", len(folded.graph), left_out)))
    said = [] if str(face) == "channels first, float" else [f"image: {face}"]
    said += [f"stored in {halves}, read as float32"] if halves else []
    said += [f"quantised dynamically ({dynamic}); read as the float network that it stands for"] if dynamic else []
    said += [f"int8 already: {kind}; kept as it is"] if kind else []
    return Given(graph, original, ending=ending, remarks=tuple(said), pixels=pixels, halves=halves, quantised=kind,
                 turned=turned, widened=widened, dynamic=dynamic)  # fmt: skip


def _folded(model: ir.Model, path: Path) -> tuple[ir.Model, str]:
    """Shape subgraphs of dynamic exports only become constants by folding, so the import ends with it."""
    passes.RemoveUnusedNodesPass()(model)
    others = sorted({f"{node.domain}.{node.op_type}" for node in model.graph if node.domain not in ("", "ai.onnx")})
    if others:
        raise DeployError(
            f"model {path}: got operators that are not ONNX's: {', '.join(others)[:200]}; expected a file as an "
            "exporter writes it, before a runtime's optimisations"
        )
    folded, left_out = fold(model)
    settle(folded)
    return folded, left_out
