"""Networks in other people's layouts: does each .onnx build, and does the bundle give the file's own labels?

usage: python -m benchmarks.given FILE.onnx... [--tile 256] [--output-name NAME]

The judge is ONNX Runtime on the file as it is, fed in the file's own order and type; nothing of pipeline/graph/given is
used for it.  One photograph-like window; labels count where the file's two best scores differ by 1e-3 of the largest.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from calib.data.scenes import render_bands
from engines.contract import Float32
from engines.errors import DeployError
from engines.segmenter import Segmenter, open_segmenter
from engines.tiling.placement import Tiling
from pipeline.build import build_bundle
from pipeline.checkpoints.sources import SourceOptions
from pipeline.request import BuildRequest

NEAR_TIE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tile", type=int, default=256, help="of files that do not fix it")
    parser.add_argument("--output-name", help="of files with several outputs")
    args = parser.parse_args()
    print(
        "| file | opset and exporter | in | out | result | labels | logits, relative |\n|---|---|---|---|---|---|---|"
    )
    for path in args.files:
        print(_row(path, args.tile, args.output_name), flush=True)


def _row(path: Path, tile: int, output: str | None) -> str:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image, outputs = session.get_inputs()[0], session.get_outputs()
    chosen = output if len(outputs) > 1 else None
    said = next(each for each in outputs if chosen in (None, each.name))
    last = image.shape[-1] in (1, 2, 3, 4)
    sizes = image.shape[1:3] if last else image.shape[2:4]
    height, width = (size if isinstance(size, int) and size > 0 else tile for size in sizes)
    head = f"| {path.name} | {_made(path)} | {image.shape} {image.type[7:-1]} | {said.shape} {said.type[7:-1]} |"
    with tempfile.TemporaryDirectory() as folder:
        tiling = Tiling(height, window_w=width, stride_h=height, stride_w=width)
        request = BuildRequest(str(path), Path(folder) / "b", tiling, options=SourceOptions(output_name=chosen))
        try:
            build_bundle(request, lambda step, text: None)
        except DeployError as error:
            return f"{head} {error} | | |"
        with open_segmenter(Path(folder) / "b") as (segmenter, _):
            bands = len(segmenter.spec.mean)
            scene = render_bands(3, height, width, bands)
            window = segmenter.first_window(scene)[:1].copy()
            own = session.run([said.name], {image.name: _fed(window, image.type, last)})[0]
            labels, error = _agreement(segmenter, window, own)
    return f"{head} builds | {labels} | {error} |"


def _made(path: Path) -> str:
    import onnx

    model = onnx.load(path, load_external_data=False)
    version = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return f"{version}, {model.producer_name} {model.producer_version}".strip()


def _fed(window: Float32, kind: str, last: bool) -> Any:
    turned = window.transpose(0, 2, 3, 1) if last else window
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
    return np.ascontiguousarray(turned if kind in kinds else np.rint(turned), kinds.get(kind, np.uint8))


def _agreement(segmenter: Segmenter, window: Float32, own: Any) -> tuple[str, str]:
    """Share of equal labels off the file's near-ties, and the largest difference of logits over the largest logit."""
    logits = segmenter.session.run(window)[0]
    count, height, width = logits.shape
    if own.dtype.kind in "iu" or own.size == height * width < logits.size:
        mine, theirs, clear = logits.argmax(0), own.reshape(height, width), np.ones((height, width), bool)
        if count == 1:
            mine = (logits[0] > segmenter.spec.cut).astype(int)
        ranked = np.sort(logits, 0)
        clear = ranked[-1] - ranked[-2] > NEAR_TIE * np.abs(logits).max() if count > 1 else clear
        return f"{100 * (mine == theirs)[clear].mean():.3f} %", "labels only"
    scores = own.astype(np.float32).reshape(-1)
    last = own.shape[-1] == count and own.shape[1] != count
    scores = scores.reshape(height, width, count).transpose(2, 0, 1) if last else scores.reshape(logits.shape)
    probable = 0 <= scores.min() <= scores.max() <= 1
    mine, theirs, margin = logits, scores, np.abs(scores[0] - (0.5 if probable else 0.0))
    if count > 1:
        ranked = np.sort(scores, 0)
        mine, theirs, margin = logits.argmax(0), scores.argmax(0), ranked[-1] - ranked[-2]
    else:
        mine, theirs = logits[0] > segmenter.spec.cut, scores[0] > (0.5 if probable else segmenter.spec.cut)
    clear = margin > NEAR_TIE * np.abs(scores).max()
    error = "probabilities" if probable else f"{np.abs(logits - scores).max() / np.abs(scores).max():.1e}"
    return f"{100 * (mine == theirs)[clear].mean():.3f} % of {100 * clear.mean():.0f} %", error


if __name__ == "__main__":
    main()
