"""A million images, and a mosaic of 10^12 pixels, on machines that nobody here has: what they would take, on paper.

    python -m benchmarks.paper                     from the figures below, each with its source
    python -m benchmarks.paper --set run_ms=28 --set cores=32
    python -m benchmarks.paper --measure           the processor's part of a raster, on this machine

Everything printed follows from `FIGURES`.  One GPU is an H100 with SegFormer-B0, 19 classes, fp16, windows of 1024 at
stride 768, PyTorch as the engine: the only one that was measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import date
from pathlib import Path

IMAGES, MOSAIC = 10**6, 10**12
PIXELS = 2048 * 1024  # of an image, three windows
WINDOWS = 3
STRIDE = 768
FIGURES = {
    "engine_ms": (24.6, "of an H100 for an image, back to back (NOTES, a folder of 60 PNGs)"),
    "run_ms": (34.4, "for an image by `run` with 16 cores (NOTES, the same)"),
    "joule": (6.0, "of the GPU for an image (NOTES, the H100)"),
    "image_ms": (110.0, "of a core for an image: reading, copies, label shares, writing (NOTES, the H100)"),
    "png_bytes": (2.2e6, "of an image (Cityscapes: 11 GB of 5000)"),
    "mask_bytes": (39e3, "of a mask (the demo's)"),
    "cpu_ms": (728.0, "of a core for an image without a GPU: bf16, 364 ms on two EPYC cores (docs/measured.md)"),
    "driver_ms": (0.68, "of a core of Ray's driver for an image (benchmarks.fleet)"),
    "raster_read_ms": (8.2, "of a core to read a megapixel of a GeoTIFF, RGB, deflate (--measure)"),
    "raster_bytes": (1.0, "of a pixel of that file, a guess between JPEG's 0.3 and deflate's 2"),
    "raster_write_ms": (2.9, "of a core to write a megapixel of labels as a part (--measure)"),
    "raster_join_ms": (16.7, "of a core to make a cloud-optimised GeoTIFF of a megapixel of parts (--measure)"),
    "cores": (16.0, "beside one GPU, as of the machine that was measured"),
    "link": (1.25e9, "bytes a second of a 10 Gbit/s link to the store"),
    "disk": (3.0e9, "bytes a second of one NVMe disk"),
}  # fmt: skip


def images(f: dict[str, float]) -> list[str]:
    engine, run = (IMAGES * f[name] / 3.6e6 for name in ("engine_ms", "run_ms"))
    busy, rate = f["image_ms"] / f["engine_ms"], 1e3 / f["engine_ms"]
    flow = rate * f["png_bytes"]
    return [
        f"{IMAGES:.0e} images of 2048x1024: {IMAGES * f['png_bytes'] / 1e12:.1f} TB read, "
        f"{IMAGES * f['mask_bytes'] / 1e9:.0f} GB written",
        f"GPU hours: {engine:.1f} at the engine's rate, {run:.1f} at that of `run`; "
        f"{IMAGES * f['joule'] / 3.6e6:.1f} kWh of GPUs",
        f"core hours beside the GPU: {IMAGES * f['image_ms'] / 3.6e6:.0f}; cores that keep one GPU busy: {busy:.1f}; "
        f"of {f['cores']:.0f}, so that {'the GPU' if busy < f['cores'] else 'decoding'} is full first",
        f"each GPU reads {flow / 1e6:.0f} MB/s: a 10 Gbit/s link feeds {f['link'] / flow:.0f} GPUs, a disk "
        f"{f['disk'] / flow:.0f}",
        f"done in an hour: {run:.0f} GPUs as `run` was measured, {busy * engine:.0f} cores at least, "
        f"{IMAGES * f['png_bytes'] / 3600 / 1e6:.0f} MB/s",
        f"without a GPU: {IMAGES * f['cpu_ms'] / 3.6e6:.0f} core hours",
        f"Ray's driver is full at {1e3 / f['driver_ms']:.0f} images/s, {1e3 / f['driver_ms'] / rate:.0f} GPUs"
        if f["driver_ms"] else "",
    ]  # fmt: skip


def mosaic(f: dict[str, float]) -> list[str]:
    windows, mega = MOSAIC / STRIDE**2, MOSAIC / 1e6
    gpu = windows * f["engine_ms"] / WINDOWS / 3.6e6
    read, write, join = (mega * f[f"raster_{part}_ms"] / 3.6e6 for part in ("read", "write", "join"))
    overlap = (1024 / STRIDE) ** 2
    flow = MOSAIC * f["raster_bytes"] / (gpu * 3600)
    return [
        f"{MOSAIC:.0e} pixels: {windows / 1e6:.2f} million windows, {MOSAIC * f['raster_bytes'] / 1e12:.1f} TB read, "
        f"{MOSAIC / 1e12:.1f} TB of labels before compression",
        f"GPU hours: {gpu:.1f} at the engine's rate",
        f"core hours: {read:.1f} reading (once; where windows are read by themselves {overlap:.1f} times that), "
        f"{write:.1f} writing parts: {(read + write) / gpu:.1f} cores a GPU",
        f"joining the parts into one file: {join:.1f} core hours in one process, {join / f['cores']:.1f} h if "
        f"GDAL fills {f['cores']:.0f}: the bound from {gpu / join:.1f} to {gpu / (join / f['cores']):.0f} GPUs on",
        f"each GPU reads {flow / 1e6:.0f} MB/s: a 10 Gbit/s link feeds {f['link'] / flow:.0f} GPUs",
    ]  # fmt: skip


def measured() -> dict[str, float]:
    """Milliseconds of processor a megapixel, of all threads."""
    import numpy as np

    from benchmarks.rasters import make
    from calib.data.scenes import render
    from engines.rasters.chunks import Chunks
    from engines.rasters.gdal import open_raster
    from engines.rasters.gdal_write import write_cog
    from engines.spec import IGNORE_LABEL

    side, part = 4096, 1024
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "in.tif", side, side, side)
        found = dict.fromkeys(("read", "write", "join"), 0.0)
        labels = np.ascontiguousarray(np.tile(render(1, part, part).labels, (1, side // part)))
        begin = time.process_time()
        with open_raster(folder / "in.tif") as file:
            for row in range(0, side, part):
                file.read((row, row + part, 0, side), (1, 2, 3))
            found["read"] = time.process_time() - begin
            chunks = Chunks.begin(folder / "parts", {}, (side, side), file.place, False)
        begin = time.process_time()
        for row in range(0, side, part):
            chunks.put("labels", (row, row + part, 0, side), labels, IGNORE_LABEL)
        found["write"] = time.process_time() - begin
        begin = time.process_time()
        write_cog(chunks.mosaic("labels", IGNORE_LABEL), folder / "out.tif", labels=True)
        found["join"] = time.process_time() - begin
    return {f"raster_{key}_ms": 1e3 * seconds / (side**2 / 1e6) for key, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="in place of a figure")
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    if args.measure:
        for name, value in measured().items():
            print(f"{date.today()} {name} {value:.1f}")
        return
    figures = {name: value for name, (value, _) in FIGURES.items()}
    for name, value in (word.split("=") for word in args.set):
        if name not in figures:
            parser.error(f"--set: got {name}, expected one of {', '.join(figures)}")
        figures[name] = float(value)
    for name, (_, source) in FIGURES.items():
        print(f"{name:16}{figures[name]:>12g}  {source}")
    for lines in (images(figures), mosaic(figures)):
        print()
        print("\n".join(filter(None, lines)))


if __name__ == "__main__":
    main()
