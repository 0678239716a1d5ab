"""When the parts of a frame were done, by events."""

from __future__ import annotations

from collections.abc import Iterator

from engines.gpu.context import CudaGpu
from engines.gpu.memory import CudaEvent
from engines.tiling.device import Timings


class PartClock:
    """Of one frame.  before: the last event of the frame before, which may still be at work when this one begins."""

    def __init__(self, gpu: CudaGpu, before: CudaEvent | None = None) -> None:
        self._gpu, self._before = gpu, before
        self._marks: list[tuple[str, CudaEvent]] = []
        self._read = 1

    def mark(self, name: str) -> None:
        """What was started since the last mark is of part `name` of `Timings`, or with "" of none."""
        event = self._gpu.event(timed=True)
        self._gpu.mark(event, self._gpu.main)
        self._marks.append((name, event))

    @property
    def last(self) -> CudaEvent | None:
        """The event of the last mark."""
        return self._marks[-1][1] if self._marks else None

    @property
    def count(self) -> int:
        return len(self._marks)

    def spans(self, count: int) -> Iterator[tuple[int, str, float]]:
        """Number, part and seconds of the first `count` marks, which must have happened; each is told once."""
        for index in range(self._read, count):
            name, event = self._marks[index]
            if name:
                taken = self._gpu.seconds(self._marks[index - 1][1], event)
                if index == 1 and self._before is not None:  # windows of two frames may be of one batch
                    taken = min(taken, self._gpu.seconds(self._before, event))
                yield index, name, taken
        self._read = max(self._read, count)

    def add_to(self, timings: Timings, count: int) -> None:
        """What `spans` tells."""
        for _, name, taken in self.spans(count):
            setattr(timings, name, getattr(timings, name) + taken)
