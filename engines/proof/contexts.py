"""Whether two execution contexts that take turns are faster than one on a device: measured there, and then followed.

A small engine does not fill a large GPU, and the last wave of each of its kernels fills any GPU badly; whether the
kernels of a second batch find room beside them nobody can tell but the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from engines.contract import UInt8
from engines.errors import GateError
from engines.gpu.device import CudaDevice
from engines.proof.replay import replayed
from engines.segmenter import Segmenter

WORTH = 0.97  # of the time with one: what is nearer to it is noise, and the second takes memory
ROUNDS = 7  # of each, in turns, so that clocks that rise or fall are the same for both
BATCHES = (4, 32)  # a round, at least and at most
ROUND_MS = 20.0  # about
SPREAD = 1.05  # between rounds, the outermost on either side left out: more is others on the same GPU


@dataclass(frozen=True)
class Contexts:
    """used: 1 or 2.  one_ms, two_ms: milliseconds of a batch with one, and with two in turns, or 0.  why: there is one
    without having been measured, or in spite of it.  settled: whether another measurement would say the same.
    """

    used: int
    one_ms: float = 0.0
    two_ms: float = 0.0
    why: str = ""
    settled: bool = True

    def to_json(self) -> dict[str, Any]:
        """What is settled."""
        return {name: value for name, value in asdict(self).items() if name != "settled"}

    def __str__(self) -> str:
        if not self.two_ms:
            return f"one execution context: {self.why}"
        times = f"{self.one_ms:.3g} ms a batch with one execution context, {self.two_ms:.3g} with two in turns"
        return f"{times}: {'both take' if self.used == 2 else 'one takes'} them{self.why and f', as {self.why}'}"


def measure(segmenter: Segmenter, image: UInt8) -> Contexts:
    """Leaves as many contexts in use.  image: that two are held against the parts of one with, bit by bit."""
    device = segmenter.device
    assert isinstance(device, CudaDevice)
    if device.gpu.info.integrated:
        return Contexts(1, why="the GPU has the host's memory, which a second would take from images")
    device.use_contexts(2)
    if device.contexts != "2":
        return Contexts(1, why=device.contexts.removeprefix("1: "))
    once = max(device.batch_ms(BATCHES[0], 1), 1e-3)
    batches = min(max(BATCHES[0], round(ROUND_MS / once)), BATCHES[1])
    rounds = [(device.batch_ms(batches, 1), device.batch_ms(batches, 2)) for _ in range(ROUNDS)]
    one, two = (median(times) for times in zip(*rounds, strict=True))
    why, settled = "", is_settled([second / max(first, 1e-6) for first, second in rounds])
    if not settled:
        why = "rounds were too far apart to tell, as where others use the GPU"
    elif two <= WORTH * one:
        try:
            replayed(image, segmenter)
            if device.contexts == "2":
                return Contexts(2, one, two)
            why = device.contexts.removeprefix("1: ")
        except GateError as error:
            why = str(error)
    device.use_contexts(1)
    return Contexts(1, one, two, why=why, settled=settled)


def is_settled(ratios: Sequence[float]) -> bool:
    """Whether rounds, each the time with two over that with one right beside it, agree on which is faster.

    On a quiet GPU they do, or are so near to `WORTH` that nothing is lost by either.
    """
    low, high = sorted(ratios)[1], sorted(ratios)[-2]
    return not low <= WORTH < high or high <= SPREAD * low
