"""A user's .onnx as ONNX Runtime runs it, untouched: the judge of what became of it here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from engines.contract import Float32
from pipeline.graph.given.interface import BYTES, LAST, Face
from pipeline.graph.onnx_graph import open_onnx, refusals


@dataclass(frozen=True)
class Original:
    """model: the graph as the file has it.  output: which of its values is asked for."""

    model: ir.Model
    face: Face
    output: str

    def run(self, windows: Sequence[Float32]) -> Iterator[Any]:
        """Its own output, in its own order and type, for each window (1, C, H, W).  Raises DeployError."""
        session = open_onnx(self.model, optimised=True)
        name = session.get_inputs()[0].name
        with refusals():
            for window in windows:
                yield session.run([self.output], {name: self._own(window)})[0]

    def _own(self, window: Float32) -> Any:
        turned = window.transpose(0, 2, 3, 1) if self.face.order == LAST else window
        if self.face.dtype in BYTES:
            kind = self.face.dtype.numpy()
            limits = np.iinfo(kind)
            return np.clip(np.rint(turned), limits.min, limits.max).astype(kind)
        return np.ascontiguousarray(turned, self.face.dtype.numpy())
