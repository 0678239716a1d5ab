"""What frames ask of the driver: launches, copies, waits, counted by the fake one.  The figures that need no GPU.

    FOLDER=$(mktemp -d); bash tests/engines/gpu/fake_cuda/build.sh $FOLDER
    python -c "import sys; from pathlib import Path; from tests.engines.gpu import emulated; \\
        emulated.build(Path(sys.argv[1]) / 'kernels.so')" $FOLDER
    LD_LIBRARY_PATH=$FOLDER FAKE_CUDA_KERNELS=$FOLDER/kernels.so python -m tests.engines.gpu.fake_cuda.counts

Prints a line a case, in units of one image of the second half of a run, when everything is warm.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engines.segmenter import Segmenter
from engines.tiling.device import Confidence
from engines.tiling.placement import Tiling
from tests.engines.gpu.fake_cuda import support
from tests.engines.gpu.fake_cuda.support import Engine, configure, driver, image, opened

NAMES = ("kernels", "engines", "graphs", "sets", "records", "follows", "waits", "spins", "copies in", "copies out",
         "copies within", "bytes in", "bytes out", "bytes within")  # fmt: skip
TILING = Tiling(64, 96, 48, 64)


def counted() -> dict[str, int]:
    """Since the driver was loaded; see fake.h."""
    numbers = (ctypes.c_longlong * len(NAMES))()
    driver().fake_counts(numbers)
    return dict(zip(NAMES, numbers, strict=True))


def during(work: Callable[[], object]) -> dict[str, int]:
    before = counted()
    work()
    return {name: number - before[name] for name, number in counted().items()}


@dataclass(frozen=True)
class Case:
    """sizes: of a folder's images.  strips: run by rows of windows.  contexts: that take turns."""

    name: str
    batch: int
    sizes: tuple[tuple[int, int], ...]
    strips: bool = False
    confidence: Confidence = False
    contexts: int = 1

    def count(self) -> tuple[dict[str, int], dict[str, int]]:
        """Of the first run over the images and of the third."""
        pictures = [image(*size, seed) for seed, size in enumerate(self.sizes)]
        with opened(Engine(TILING, self.batch), TILING) as (segmenter, device, _):
            device.use_contexts(self.contexts)
            runs = [during(lambda: self._run(segmenter, pictures)) for _ in range(3)]
        return runs[0], runs[2]

    def _run(self, segmenter: Segmenter, pictures: list[np.ndarray]) -> None:
        if self.strips:
            for picture in pictures:
                list(segmenter.bands(picture, self.confidence))
        else:
            list(segmenter.stream(pictures, self.confidence))


CASES = (
    Case("8 images of 1 window, batch 8", 8, 8 * ((64, 96),)),
    Case("8 images of 15 windows, batch 1", 1, 8 * ((150, 333),)),
    Case("8 images of 15 windows, batch 8", 8, 8 * ((150, 333),)),
    Case("8 images of 8 sizes, batch 4", 4, tuple((100 + 20 * i, 400 - 30 * i) for i in range(8))),
    Case("1 image of 80 windows, batch 1", 1, ((784, 333),)),
    Case("1 image of 80 windows in strips, batch 4", 4, ((784, 333),), strips=True),
    Case("8 images of 15 windows, batch 8, confidence", 8, 8 * ((150, 333),), confidence=True),
    Case("8 images of 15 windows, batch 8, confidence in bytes", 8, 8 * ((150, 333),), confidence="bytes"),
    Case("8 images of 15 windows, batch 1, two contexts", 1, 8 * ((150, 333),), contexts=2),
    Case("8 images of 1 window, batch 1, two contexts", 1, 8 * ((64, 96),), contexts=2),
    Case("1 image of 80 windows in strips, batch 4, two contexts", 4, ((784, 333),), strips=True, contexts=2),
)


def main() -> None:
    configure()
    print(f"{'':44}" + "".join(f"{name:>14}" for name in NAMES))
    for case in CASES:
        for when, numbers in zip(("first", "third"), case.count(), strict=True):
            print(f"{case.name + ', ' + when:44}" + "".join(f"{numbers[name]:14}" for name in NAMES))
    assert support.alive()[0] == {}


if __name__ == "__main__":
    main()
