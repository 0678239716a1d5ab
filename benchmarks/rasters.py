"""Rasters of growing size through a bundle: seconds, peak memory, windows run, and the files that come out.

    python -m benchmarks.rasters BUNDLE [--sizes 4096x4096 16384x16384 100000x50000] [--filled 4096] [--json FILE]

Every raster is a sparse GeoTIFF whose first --filled rows and columns hold a rendered scene again and again, and else
nothing, so that what grows is the raster and not the work.  Each runs in a process of its own; its peak is that
process's, engine and GDAL included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from calib.data.scenes import render
from engines.machine.limits import cores
from engines.rasters.run import RasterOptions, run_raster
from engines.segmenter import open_segmenter

ROOT = Path(__file__).parent.parent


def make(path: Path, width: int, height: int, filled: int) -> None:
    scene = np.moveaxis(np.maximum(render(1, 1024, 1024).image, 1), 2, 0)
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8", nodata=0, tiled=True,
        blockxsize=512, blockysize=512, compress="deflate", zlevel=1, sparse_ok=True, bigtiff="if_safer",
        crs="EPSG:32632", transform=rasterio.Affine(0.1, 0, 500_000, 0, -0.1, 5_000_000),
    ) as file:  # fmt: skip
        for row in range(0, min(filled, height), 1024):
            for column in range(0, min(filled, width), 1024):
                part = scene[:, : height - row, : width - column]
                file.write(part, window=Window(column, row, part.shape[2], part.shape[1]))


def alone(bundle: str, raster: str, written: str) -> dict[str, Any]:
    """In this process."""
    target = Path(written)
    with open_segmenter(Path(bundle)) as (segmenter, manifest):
        begin = time.perf_counter()
        report = run_raster(segmenter, Path(raster), target, RasterOptions(), manifest.files)
        seconds = time.perf_counter() - begin
        engine = segmenter.device.timings.engine
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "engine": engine, "peak": peak, "windows": report.windows, "parts": report.seconds,
            "bytes": target.stat().st_size}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["4096x4096", "16384x16384", "100000x50000"], metavar="WxH")
    parser.add_argument("--filled", type=int, default=4096, metavar="PIXELS")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{date.today()}, {cores()} cores, {args.bundle}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            width, height = map(int, size.split("x"))
            raster, target = Path(folder, f"{size}.tif"), Path(folder, "out", f"{size}.tif")
            make(raster, width, height, args.filled)
            words = ", ".join(repr(str(path)) for path in (args.bundle.resolve(), raster, target))
            code = f"import json; from benchmarks.rasters import alone; print(json.dumps(alone({words})))"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
            found = {"size": size, **json.loads(done.stdout)}
            rows.append(found)
            print(f"{size:>14}: {found['seconds']:7.1f} s, {found['engine']:.1f} in the engine, "
                  f"{found['windows']} windows, peak {found['peak'] / 1e6:.0f} MB, "
                  f"result {found['bytes'] / 1e6:.2f} MB, {found['parts']}", flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"date": str(date.today()), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
