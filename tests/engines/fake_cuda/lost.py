"""lost.py N INTEGRATED: a folder of images; after N launches the GPU's context breaks.  Prints what could be seen."""

from __future__ import annotations

import json
import sys

from engines.device.cuda import open_gpu
from engines.device.cuda_device import CudaDevice
from engines.errors import GpuLostError
from engines.segmenter import Segmenter
from engines.tiling import Tiling
from tests.engines.fake_cuda.support import CUBIN, SPEC, Engine, configure, driver, image, on_host, same

TILING = Tiling(64, 96, 48, 64)


def _error(action: object, *arguments: object) -> str:
    try:
        action(*arguments)  # type: ignore[operator]
    except GpuLostError as error:
        return str(error)
    return "no error"


def main(launches: int, integrated: int, lazy: int) -> None:
    configure(integrated=integrated, lazy=lazy)
    engine, seen = Engine(TILING), {"masks": 0, "right": 0, "error": "", "later": []}
    pictures = [image(150, 333, seed) for seed in range(8)]
    host = on_host(engine, TILING)
    with open_gpu() as gpu:
        try:
            with CudaDevice(gpu, engine, SPEC, TILING, CUBIN) as device:
                driver().fake_set(b"fail_after", launches)
                segmenter = Segmenter(device)
                try:
                    for mask, picture in zip(segmenter.segment_all(pictures), pictures, strict=False):
                        seen["masks"] += 1
                        seen["right"] += same(mask, host.segment(picture))
                finally:
                    seen["later"] = [
                        _error(segmenter.segment, pictures[0]),
                        _error(lambda: list(segmenter.bands(pictures[0]))),
                        _error(gpu.allocate, 10),
                    ]
        except GpuLostError as error:
            seen["error"] = str(error)

    def again() -> None:
        with open_gpu():
            pass

    seen["later"].append(_error(again))
    print(json.dumps(seen))


main(*map(int, sys.argv[1:]))
