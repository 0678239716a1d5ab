"""An image with the checkpoint's own logits and labels, kept in every bundle: the proof needs no torch."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.contract import Float32, UInt8
from engines.errors import DeployError
from engines.files import DAMAGED_NPZ
from engines.proof.agreement import OPTIONS, Agreement, Bool, Gate, compare_labels, compare_logits
from engines.proof.stress import STEP as STRESS
from engines.proof.stress import compare_stress, on_stress, stress_windows
from engines.segmenter import Segmenter
from engines.spec import ModelSpec
from engines.tiling.inputs import window_input
from engines.tiling.placement import Tiling

GRID = 64  # logits are kept at no more than this many points a side: 311 KB a window for 19 classes


@dataclass(frozen=True)
class Golden:
    """image: (H, W, C) uint8, cut into M windows by the bundle's tiling.

    logits: (M, K, gh, gw) float32, every `step`-th value along both axes of the reference's output.
    labels: (H, W) uint8, the reference's mask: logits resized to the window, averaged, then argmax.
    reference: what computed them.
    ties: (H, W) bool, where that mask is undecided; None counts every label.
    stress: (S, K, gh, gw) float32, a grid of the fp32 graph's logits on the first S stress inputs, which are made from
    the image; None has none.  Bundles of earlier versions have neither.
    """

    image: UInt8
    logits: Float32
    step: int
    labels: UInt8
    reference: str
    ties: Bool | None = None
    stress: Float32 | None = None

    @classmethod
    def sample(
        cls, image: UInt8, logits: Float32, labels: UInt8, reference: str, ties: Bool | None = None,
        stress: Float32 | None = None,
    ) -> Golden:  # fmt: skip
        """Keep a grid of the reference's full logits (M, K, h, w)."""
        step = max(1, -(-max(logits.shape[2:]) // GRID))
        return cls(
            image,
            logits=np.ascontiguousarray(logits[:, :, ::step, ::step]),
            step=step,
            labels=labels,
            reference=reference,
            ties=ties,
            stress=stress,
        )

    def save(self, path: Path) -> None:
        np.savez_compressed(path, **{name: value for name, value in vars(self).items() if value is not None})

    @classmethod
    def load(cls, content: bytes) -> Golden:
        """From a file that `save` wrote.  Raises DeployError."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as data:
                return cls(
                    _array(data["image"], np.uint8, (None, None, None)),
                    logits=_array(data["logits"], np.float32, (None,) * 4),
                    step=int(data["step"]),
                    labels=_array(data["labels"], np.uint8, data["image"].shape[:2]),
                    reference=str(data["reference"]),
                    ties=_array(data["ties"], np.bool_, data["image"].shape[:2]) if "ties" in data.files else None,
                    stress=_array(data["stress"], np.float32, (None,) * 4) if "stress" in data.files else None,
                )
        except DAMAGED_NPZ as error:
            raise DeployError(f"golden.npz: {error}; build the bundle again from the checkpoint") from error

    def verify(self, segmenter: Segmenter, gate: Gate, precision: str) -> list[Agreement]:
        """Compare an engine's logits and its tiled mask with the reference.  Raises GateError outside `gate`."""
        inputs = windows_of(self.image, segmenter.spec, segmenter.tiling)
        count = -(-len(inputs) // segmenter.device.batch) * segmenter.device.batch
        order = [index % len(inputs) for index in range(count)]  # every place of the batch gets a window
        logits = np.concatenate(
            [each[:, :, :: self.step, :: self.step].copy() for each in _answers(segmenter, [inputs[i] for i in order])]
        )
        engine = compare_logits("engine", logits, self.reference, self.logits[order], gate, segmenter.spec.threshold)
        engine.require(gate, OPTIONS)
        labels = segmenter.segment(self.image).labels
        mask = compare_labels("tiled mask", labels, self.reference, self.labels, self.ties)
        mask.require(gate, OPTIONS)
        return [engine, mask, *self._verify_stress(segmenter, on_stress(gate, precision))]

    def _verify_stress(self, segmenter: Segmenter, gate: Gate) -> list[Agreement]:
        if self.stress is None:
            return []
        inputs = stress_windows(self.image, segmenter.spec, segmenter.tiling)[: len(self.stress)]
        answers, threshold = _answers(segmenter, inputs), segmenter.spec.threshold
        return [compare_stress(STRESS, answers, "the fp32 graph", self.stress, gate, threshold)]


def _answers(segmenter: Segmenter, inputs: Sequence[Float32]) -> Iterator[Float32]:
    """Logits (1, K, h, w) of each of the `inputs`, which go through the engine in its batches."""
    batch = segmenter.device.batch
    for start in range(0, len(inputs), batch):
        group = [inputs[index % len(inputs)] for index in range(start, start + batch)]
        logits = segmenter.session.run(np.concatenate(group))
        yield from (logits[index : index + 1].copy() for index in range(min(batch, len(inputs) - start)))


def _array(array: NDArray[Any], dtype: type, shape: tuple[int | None, ...]) -> Any:
    """The same, of that type and shape; None is any size above 0.  Raises ValueError or TypeError."""
    if not isinstance(array, np.ndarray):  # of a member that is no .npy, numpy gives the bytes
        raise TypeError(f"got {type(array).__name__}, expected an array")
    fits = len(array.shape) == len(shape) and all(s in (None, g) for g, s in zip(array.shape, shape, strict=True))
    if array.dtype != dtype or not fits or 0 in array.shape:
        raise ValueError(f"got an array {array.shape} {array.dtype}, expected {shape} {np.dtype(dtype)}")
    return array


def windows_of(image: UInt8, spec: ModelSpec, tiling: Tiling) -> list[Float32]:
    """The network inputs (1, C, h, w) of all windows of `image`, row by row."""
    tops, lefts = tiling.placements(*image.shape[:2])
    return [window_input(image, top, left, spec, tiling)[None] for top in tops for left in lefts]
