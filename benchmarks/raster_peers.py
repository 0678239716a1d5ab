"""A GeoTIFF through `run` and through geoai's tiled inference: seconds, peak memory, and whether the labels agree.

    python -m benchmarks.raster_peers BUNDLE [--sides 2048 4096 8192] [--skip eager]

BUNDLE: of `demo`.  geoai (opengeos) is the package that people run SegFormer over orthophotos with; of it only
`predict_geotiff` is taken, by `pip install --no-deps` into a folder of its own, since the package asks for 28
others.  It reads by windows, as we do, adds uniformly weighted logits up in arrays of the whole raster, and writes the
largest class.  It gets our windows, stride and weights, in eager PyTorch and on the bundle's own engine, so that what
is around the network can be told from the network.  Every run is a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from benchmarks.rasters import ROOT, make
from engines.machine.limits import cores
from engines.rasters.run import RasterOptions, run_raster
from engines.segmenter import Segmenter, open_segmenter

PACKAGE = "geoai-py==0.40.1"
ROWS = {"eager": "geoai, eager PyTorch", "engine": "geoai, on our engine", "run": "edgeseg"}


def peer(folder: Path) -> Any:
    """geoai's module `inference`, without the rest of the package."""
    if not (folder / "geoai").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PACKAGE]
        subprocess.run(command, check=True)
    utils = types.ModuleType("geoai.utils")
    utils.get_device = lambda: None  # type: ignore[attr-defined]  # asked for where no device is named
    sys.modules |= {"geoai": types.ModuleType("geoai"), "geoai.utils": utils}
    spec = importlib.util.spec_from_file_location("geoai.inference", folder / "geoai" / "inference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_geoai(segmenter: Segmenter, network: Callable[[Any], Any], packages: str, raster: str, target: str) -> None:
    """network: normalised windows (N, 3, H, W) float32 -> logits (N, K, h, w), both tensors."""
    import torch

    class Upsampled(torch.nn.Module):
        def forward(self, windows: Any) -> Any:
            logits = network(windows)
            return torch.nn.functional.interpolate(logits, windows.shape[2:], mode="bilinear", align_corners=False)

    spec, tiling = segmenter.spec, segmenter.tiling
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (spec.mean, spec.std))
    peer(Path(packages)).predict_geotiff(
        Upsampled(), raster, target, tile_size=tiling.window_h, overlap=tiling.window_h - tiling.stride_h, batch_size=1,
        num_classes=len(spec.classes), output_dtype="uint8", output_nodata=255, blend_mode="none", device="cpu",
        preprocess_fn=lambda tile: (tile - mean) / std,
        postprocess_fn=lambda logits: logits.argmax(0), compress="deflate", verbose=False,
    )  # fmt: skip


def _network(row: str, segmenter: Segmenter) -> Callable[[Any], Any]:
    import torch

    from pipeline.checkpoints import load_model

    if row == "eager":
        return load_model("demo").module.eval().requires_grad_(False)
    return lambda windows: torch.from_numpy(segmenter.session.run(windows.numpy()))


def alone(row: str, bundle: str, packages: str, raster: str, target: str) -> dict[str, float]:
    """In this process: seconds from the open model to the written file, and the process's peak in bytes."""
    Path(target).parent.mkdir(exist_ok=True)
    with open_segmenter(Path(bundle)) as (segmenter, manifest):
        network = None if row == "run" else _network(row, segmenter)
        segmenter.session.run(np.zeros((1, 3, segmenter.tiling.window_h, segmenter.tiling.window_w), np.float32))
        begin = time.perf_counter()
        if network is None:
            run_raster(segmenter, Path(raster), Path(target), RasterOptions(), manifest.files)
        else:
            by_geoai(segmenter, network, packages, raster, target)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def _labels(path: Path) -> Any:
    with rasterio.open(path) as file:
        return file.read(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 4096, 8192], metavar="PIXELS")
    parser.add_argument("--skip", nargs="*", default=(), choices=ROWS)
    args = parser.parse_args()
    print(f"{date.today()}, {cores()} cores, load {os.getloadavg()[0]:.1f}, {args.bundle}, {PACKAGE}")
    with tempfile.TemporaryDirectory() as folder:
        for side in args.sides:
            raster, ours = Path(folder, f"{side}.tif"), Path(folder, "run", f"{side}.tif")
            make(raster, side, side, side)
            for row in (name for name in reversed(ROWS) if name not in args.skip):
                target = Path(folder, row, f"{side}.tif")
                words = (row, str(args.bundle.resolve()), str(Path(folder, "packages")), str(raster), str(target))
                code = f"import json; from benchmarks.raster_peers import alone; print(json.dumps(alone{words!r}))"
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
                if done.returncode:
                    last = (done.stderr.strip() or f"killed by signal {-done.returncode}").splitlines()[-1]
                    print(f"{side:>6}² {ROWS[row]:24} failed: {last[:150]}", flush=True)
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                same = (_labels(target) == _labels(ours)).mean()
                print(f"{side:>6}² {ROWS[row]:24} {found['seconds']:8.1f} s  peak {found['peak'] / 1e6:7.0f} MB  "
                      f"{same:9.4%} of labels as ours", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
