"""A ready .onnx as something to build from, judged against ONNX Runtime on the file as it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines.contract import Float32
from engines.errors import GateError
from engines.files import file_sha256
from engines.images.palettes import default_classes, palette_for
from engines.proof.agreement import FLAT, GATES, compare_logits
from engines.spec import ModelSpec
from pipeline.checkpoints.probe import passed_on
from pipeline.graph.endings import require_same_labels
from pipeline.graph.given import Given, read_onnx
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx


@dataclass(frozen=True)
class OnnxSource:
    """given: what was read.  normalised: whether the network's own normalisation decided the spec's mean and std."""

    given: Given
    spec: ModelSpec
    reference: str = "the given .onnx in ONNX Runtime"
    normalised: bool = True

    @property
    def graph(self) -> OnnxGraph:
        return self.given.graph

    @property
    def output(self) -> tuple[int, int]:
        return self.graph.output_shape[2], self.graph.output_shape[3]

    @property
    def quantised(self) -> str:
        return self.given.quantised

    @property
    def remarks(self) -> tuple[str, ...]:
        said = self.given.remarks
        if self.given.pixels is not None and self.normalised:
            said = (*said, f"it normalises pixels of 0..{self.given.pixels:g} itself: none is done before")
        channels = self.given.original.face.channels
        if self.given.pixels is None and channels != 3 and self.normalised:
            said = (*said, passed_on(channels))
        ending = self.given.ending
        return said if ending is None else (*said, f"ending: {ending.what}")

    @property
    def parameters(self) -> int:
        values = (value.const_value for value in self.graph.model.graph.initializers.values())
        return sum(int(tensor.size) for tensor in values if tensor is not None and tensor.dtype.is_floating_point())

    def logits(self, windows: Sequence[Float32]) -> Float32:
        """Raises GateError where they are not what the file as it was given computes, or do not lead to its labels.

        A file that rounds to halves, or dynamically to bytes, is judged by its own numbers as floats, and these by it
        within what its rounding does.
        """
        logits, given = run_onnx(self.graph, list(windows)), self.given
        for one, end in zip(logits, (given.widened or given.original).run(windows), strict=True):
            self._require_same(one[None], end)
        if given.widened is not None:
            for end, own in zip(given.widened.run(windows), given.original.run(windows), strict=True):
                _require_rounded(end, own, "8 bits" if given.dynamic else given.halves, bool(given.dynamic))
        return logits

    def _require_same(self, logits: Float32, end: Any) -> None:
        """logits (1, K, h, w) of the graph, and `end`, whatever the file outputs for the same window."""
        ending, size = self.given.ending, logits.shape
        if self.given.turned and (ending is None or not ending.labels):
            end = np.moveaxis(end.reshape(1, -1, size[1]), 2, 1)
        if ending is not None:
            require_same_labels(ending, logits, end)
            return
        gate = GATES["int8" if self.quantised else "fp32"]
        read = compare_logits(
            "reading", logits, "the file", end.astype(np.float32).reshape(size), gate, self.spec.threshold
        )
        read.require(gate)

    def export(self) -> tuple[OnnxGraph, torch.export.ExportedProgram | None]:
        return self.graph, None


def _require_rounded(end: Any, own: Any, kind: str, eight: bool) -> None:
    """Raise GateError unless `own`, which the file computes, is `end` but for rounding to `kind`, of 8 bits or more.

    Labels are not compared one by one: rounding decides those of near-ties, and nobody knows here which are.
    """
    if own.dtype.kind in "iub":
        off, allowed = float((end != own).mean()), 1 - GATES["int8"].min_labels
    else:
        wide, narrow = end.astype(np.float64), own.astype(np.float64)
        off = float(np.sqrt(((wide - narrow) ** 2).mean()) / max(narrow.std(), FLAT * np.abs(narrow).max(), 1e-30))
        allowed = GATES["int8" if eight else "fp16"].max_relative
    if not off <= allowed:
        raise GateError(
            f"model: as floats it is off by {off:.1e} from itself in {kind} (allowed {allowed:.1e}); give the file "
            "as it was before it was converted"
        )


def load_onnx(path: Path, window: tuple[int, int], output: str | None = None) -> OnnxSource:
    """Read `path` for windows of that size.  output: which one, where there are several.  Raises DeployError."""
    given = read_onnx(path, window, output)
    _, count, height, _ = given.graph.output_shape
    names = default_classes(count)
    spec = ModelSpec(
        "onnx", path.stem, names, palette_for(names), logits_stride=max(1, round(window[0] / height)), source="onnx",
        source_sha256=file_sha256(path), threshold=None if given.ending is None else given.ending.threshold,
    )  # fmt: skip
    channels = given.original.face.channels
    if given.pixels is not None or channels != len(spec.mean):
        scale = 255.0 / (given.pixels or 1.0)  # of bands nobody knows the mean: 0..1, as they are
        spec = replace(spec, mean=(0.0,) * channels, std=(scale,) * channels)
    return OnnxSource(given, spec)
