"""Range collection: windows a second, the network's share of the time, and peak memory, in a process of its own.

    python benchmarks/calibration.py [--variant b2] [--tile 1024] [--windows 4] [--json FILE]

Random-weight SegFormer on rendered scenes.  The
peak is the whole command's, export included.  Run it with two counts of windows to see that memory does not grow.
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

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def random_model() -> object:
    """The factory that the measured process loads; the variant comes in through the environment."""
    import os

    import torch

    from pipeline.models.segformer import VARIANTS, SegFormer, SegFormerConfig

    dims, depths, decoder_dim = VARIANTS[os.environ["EDGESEG_VARIANT"]]
    torch.manual_seed(0)
    return SegFormer(SegFormerConfig(classes=19, dims=dims, depths=depths, decoder_dim=decoder_dim)).eval()


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Runs in the child: the verb itself, then what the kernel says about this process."""
    from engines.tiling.placement import Tiling
    from pipeline.precision.calibrate import CalibrateRequest, calibrate

    folder = Path(args.child)
    stride = 3 * args.tile // 4
    request = CalibrateRequest(
        "benchmarks.calibration:random_model", [str(folder / "images")], folder / "ranges.json",
        Tiling(args.tile, args.tile, stride, stride), windows=args.windows,
    )  # fmt: skip
    begin = time.perf_counter()
    ranges, effort = calibrate(request, lambda step, text: print(f"{step:12}{text}", file=sys.stderr, flush=True))
    seconds = time.perf_counter() - begin
    collecting = effort.network + effort.statistics
    return {
        "windows": ranges.windows,
        "tensors": len(ranges.tensors),
        "passes": effort.passes,
        "total_s": seconds,
        "windows_per_s": ranges.windows / collecting,
        "network_share": effort.network / collecting,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="b2")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args)))
        return
    import os

    from PIL import Image

    from calib.data.scenes import render

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "images").mkdir()
        for index in range(args.images):
            image = render(index, args.tile, 2 * args.tile).image
            Image.fromarray(image).save(Path(name) / "images" / f"{index}.png", compress_level=1)
        environment = {**os.environ, "EDGESEG_VARIANT": args.variant}
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", name],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    result = {"date": str(date.today()), "variant": args.variant, "tile": args.tile, **json.loads(done.stdout)}
    for key, value in result.items():
        print(f"{key:16}{value:.3f}" if isinstance(value, float) else f"{key:16}{value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
