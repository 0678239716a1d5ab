"""A photograph beside its overlay, in one JPEG.

python -m benchmarks.beside PHOTOGRAPH OVERLAY PICTURE.jpg [--width 1200]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image


def beside(photograph: Path, overlay: Path, width: int) -> Image.Image:
    """Both at one size, left and right; `width` pixels in all."""
    left, right = (Image.open(path) for path in (photograph, overlay))
    height = round(left.height * (width // 2) / left.width)
    picture = Image.new("RGB", (2 * (width // 2), height))
    for index, half in enumerate((left, right)):
        picture.paste(half.resize((width // 2, height), Image.Resampling.LANCZOS), (index * (width // 2), 0))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("overlay", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    args = parser.parse_args()
    beside(args.photograph, args.overlay, args.width).save(args.picture, "JPEG", quality=90)


if __name__ == "__main__":
    main()
