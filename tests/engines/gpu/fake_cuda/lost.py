"""lost.py N INTEGRATED LAZY FOLDER VIEWS: `run` over 8 images; after N launches the GPU's context breaks.

LAZY: 1 for streams that run as is drawn, and two execution contexts that take turns.
VIEWS: 1 for several views of each.  FOLDER gets the images and the masks.  Prints the report and what is left.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from engines.errors import GpuLostError
from engines.folder_run import RunOptions, run_images
from engines.gpu.context import open_gpu
from engines.gpu.device import CudaDevice
from engines.images.inputs import expand
from engines.segmenter import Segmenter
from engines.tiling.placement import Tiling
from engines.views.views import ImageViews
from tests.engines.gpu.fake_cuda.support import CUBIN, SPEC, Engine, configure, driver, image, on_host

TILING = Tiling(64, 96, 48, 64)
VIEWS = ImageViews(scales=(1.0, 0.8), flip=True)


def _error(action: Callable[[], object]) -> str:
    try:
        action()
    except GpuLostError as error:
        return str(error)
    return "no error"


def _open() -> None:
    with open_gpu():
        pass


def main(launches: int, integrated: int, lazy: int, folder: Path, views: int) -> None:
    configure(integrated=integrated, lazy=3 * lazy)
    engine = Engine(TILING)
    host = on_host(engine, TILING)
    host = host.on_views(VIEWS, 1) if views else host
    pictures = {f"{seed}.png": image(150, 333, seed) for seed in range(8)}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / name)
    output = folder / "masks"
    with open_gpu() as gpu, CudaDevice(gpu, engine, SPEC, TILING, CUBIN) as device:
        device.use_contexts(1 + lazy)
        driver().fake_set(b"fail_after", launches)
        segmenter = Segmenter(device).on_views(VIEWS) if views else Segmenter(device)
        report = run_images(segmenter, expand([str(folder)], output), output, RunOptions())
        later = [
            _error(lambda: segmenter.segment(pictures["0.png"])),
            _error(lambda: list(segmenter.bands(pictures["0.png"]))),
            _error(lambda: gpu.allocate(10)),
        ]
    later.append(_error(_open))
    written = sorted(path.name for path in output.iterdir())
    right = all(
        np.array_equal(np.asarray(Image.open(output / name)), host.segment(pictures[name]).labels) for name in written
    )
    print(json.dumps({"report": report.to_json(), "written": written, "right": right, "later": later}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]), int(sys.argv[5]))
