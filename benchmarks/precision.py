"""Engine time and label agreement of bundles of one model in several precisions, their runs interleaved.

    python benchmarks/precision.py IMAGE_FOLDER BUNDLE BUNDLE ...     the first bundle is the reference

Times are medians over rounds in which every engine runs once, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from engines.backends import get_backend
from engines.bundle import open_bundle
from engines.contract import executed
from engines.images.read import read_image
from engines.proof.golden import windows_of
from engines.segmenter import open_segmenter


def main(images: Path, folders: list[Path], rounds: int = 15, most: int = 40) -> None:
    paths = sorted(images.iterdir())[:most]
    with ExitStack() as stack:
        opened = [stack.enter_context(open_segmenter(folder))[0] for folder in folders]
        window = windows_of(read_image(paths[0]), opened[0].spec, opened[0].tiling)[0]
        times: list[list[float]] = [[] for _ in opened]
        for turn in range(rounds + 1):
            for segmenter, kept in zip(opened, times, strict=True):
                begin = time.perf_counter()
                segmenter.session.run(window)
                if turn:
                    kept.append(1000 * (time.perf_counter() - begin))
        equal, pixels = np.zeros(len(opened)), 0
        for path in paths:
            image = read_image(path)
            masks = [segmenter.segment(image).labels for segmenter in opened]
            equal += [np.count_nonzero(mask == masks[0]) for mask in masks]
            pixels += masks[0].size
    for folder, kept, same in zip(folders, times, equal, strict=True):
        bundle = open_bundle(folder)
        backend = get_backend(bundle.manifest.backend)
        with bundle.engine(backend) as (blob, config):
            layers = backend.layers(blob, config, window)
        ran = ", ".join(f"{name} {100 * share:.0f} %" for name, share in executed(layers).items())
        p95 = statistics.quantiles(kept, n=20)[-1]
        print(
            f"{folder.name:24}{statistics.median(kept):8.1f} ms p50 {p95:8.1f} ms p95 "
            f"{100 * same / pixels:9.3f} % of labels   {ran}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
