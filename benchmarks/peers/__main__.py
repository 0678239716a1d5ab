"""edgeseg beside its peers, from decoded pixels to the label map: one command, everybody in turns.

    python -m benchmarks.peers [--models b0,b2,setr-pup] [--images 2048x1024,4096x4096:2] [--rounds 5] [--out DIR]

Everybody gets the same weights, windows, images (rendered scenes) and threads, and a process of its own, of which only
one computes at a time:

- transformers (for SETR, which it lacks: this project's module) in eager PyTorch, stitched as mmsegmentation does;
- the same with MONAI's sliding_window_inference, which averages full-size logits as mmsegmentation does;
- torch.compile, with frozen weights; the plain graph exported to ONNX in ONNX Runtime; in OpenVINO, fp32 and bf16:
  each with a leaner stitching in PyTorch (benchmarks/slide.py);
  all but the first keep freed memory instead of returning it to the kernel, as PyTorch's tuning guide advises;
- edgeseg, in each precision that this machine has.

Warming up (one window, with all compilation) is not part of the times but is reported.  Then `deploy.py run` is started
anew for each bundle: seconds until the engine's first call, and its peak memory; with --huge also on 16384 x 16384.
Peers are installed into an environment of their own; one that cannot be is reported, and so is one that fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.peers import report as writer
from benchmarks.peers import startup
from benchmarks.peers.client import Failed, last_line
from benchmarks.peers.contestants import PEERS
from benchmarks.peers.environment import peers_python, variables
from benchmarks.peers.measure import Image, Results, compete
from benchmarks.peers.models import MODELS, ROOT, PeerModel
from calib.data.scenes import render
from engines.contract import PRECISIONS


def main() -> int:
    args = _arguments()
    load = os.getloadavg()[0]
    python, trouble = peers_python(args.peers_venv)
    notes = [trouble] if trouble else []
    usable, refused = startup.precisions()
    names = [*PEERS, *(f"edgeseg-{precision}" for precision in usable)]
    names = [name for name in names if args.contestants is None or name in args.contestants]
    results = Results()
    runs: list[startup.RunRow] = []

    def publish() -> writer.Report:
        report = writer.Report(
            tuple(results.rows), tuple(runs), args.threads, results.versions, results.peaks_exact, refused,
            tuple(notes), load=load,
        )  # fmt: skip
        writer.write(report, args.out)
        return report

    with tempfile.TemporaryDirectory(prefix="peers.") as folder:
        root = Path(folder)
        images = [write_image(w, h, rounds or args.rounds, root) for w, h, rounds in args.images]
        small = write_png(images[0], root)
        for model in (MODELS[name] for name in args.models):
            work = root / model.name
            work.mkdir()
            errors = prepare(model, names, python, work, root / "calib", args.threads)
            pythons = {name: Path(sys.executable) if name.startswith("edgeseg-") else python for name in names}
            bundles = [name for name in names if name.startswith("edgeseg-") and name not in errors]
            compete(model, names, errors, pythons, work, images, args.threads, results)
            if args.runs:
                runs += _starts(model, bundles, work, small, args.threads, args.runs, notes)
            publish()  # hours may follow, and be interrupted
        if args.huge:
            try:
                runs += startup.huge(root, small, args.threads)
            except Failed as error:
                notes.append(f"16384x16384: {error}")
    print(writer.table(publish()))
    command = [python, "-m", "benchmarks.peers.plot", (args.out / "peers.json").absolute()]
    done = subprocess.run(command, cwd=ROOT, env=variables(1), capture_output=True, text=True, check=False)
    print(f"\n{args.out / 'peers.json'}\n{args.out / 'peers.md'}")
    print(done.stdout.strip() if done.returncode == 0 else f"no plot: {last_line(done.stderr)}")
    return 0


def prepare(model: PeerModel, names: list[str], python: Path, work: Path, calib: Path, threads: int) -> dict[str, str]:
    """Export the plain graph and build the bundles; why a contestant cannot start, by name."""
    errors = {}
    command = [str(word) for word in (python, "-m", "benchmarks.peers.prepare", model.name, work)]
    for name in tqdm(["export", *names], desc=f"{model.name}: preparing", disable=None, leave=False):
        if name == "export":
            done = subprocess.run(
                command, cwd=ROOT, env=variables(threads), capture_output=True, text=True, check=False
            )
            if done.returncode:
                why = f"export failed: {last_line(done.stderr)}"
                errors = {peer: why for peer in names if peer == "ort" or peer.startswith("openvino")}
        elif name.startswith("edgeseg-"):
            words = model.build_arguments(name.removeprefix("edgeseg-"), work, calib)
            if str(calib) in words:
                startup.write_calibration(calib)
            try:
                startup.build(words, work / name, threads)
            except Failed as error:
                errors[name] = str(error)
    return errors


def write_image(width: int, height: int, rounds: int, root: Path) -> Image:
    """A rendered scene, held out from training (its seed is below 1000)."""
    size = f"{width}x{height}"
    scene = render(1, height, width)
    image = Image(size, root / f"{size}.npy", root / f"{size}.truth.npy", rounds)
    np.save(image.pixels, scene.image)
    np.save(image.truth, scene.labels)
    return image


def write_png(image: Image, root: Path) -> Path:
    """The image as a file that `deploy.py run` reads."""
    import PIL.Image

    path = root / f"{image.name}.png"
    PIL.Image.fromarray(np.load(image.pixels)).save(path)
    return path


def _starts(
    model: PeerModel, bundles: list[str], work: Path, image: Path, threads: int, runs: int, notes: list[str]
) -> list[startup.RunRow]:
    """`deploy.py run` with each bundle; what fails becomes a note in the report."""
    rows = []
    for name in bundles:
        try:
            rows.append(startup.run(model.name, name.removeprefix("edgeseg-"), work / name, image, work, threads, runs))
        except Failed as error:
            notes.append(f"{model.title}: {error}")
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=_models, default="b0,b2,setr-pup", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--images", type=_sizes, default="2048x1024,4096x4096:2", help="WIDTHxHEIGHT[:ROUNDS],…")
    parser.add_argument("--rounds", type=_positive, default=5, help="of each image that does not say its own")
    parser.add_argument("--out", type=Path, default=Path("out/peers"), help="for peers.json, peers.md and the plots")
    parser.add_argument("--contestants", type=_contestants, help="such as eager,edgeseg-fp32; everybody")
    parser.add_argument("--threads", type=_positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, default=5, help="starts of deploy.py run for each bundle; 0: none")
    parser.add_argument("--huge", action="store_true", help="memory of deploy.py run on 16384x16384: minutes")
    parser.add_argument("--peers-venv", type=Path, default=Path(__file__).parent / ".venv", metavar="DIR")
    return parser.parse_args()


def _models(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, expected some of {', '.join(MODELS)}")
    return names


def _contestants(text: str) -> list[str]:
    names, known = text.split(","), [*PEERS, *(f"edgeseg-{precision}" for precision in PRECISIONS)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, expected some of {', '.join(known)}")
    return names


def _sizes(text: str) -> list[tuple[int, int, int | None]]:
    """(width, height, rounds or None) of each."""
    sizes = []
    for size in text.split(","):
        match = re.fullmatch(r"(\d+)x(\d+)(?::(\d+))?", size)
        if not match or min(int(match[1]), int(match[2])) < 1024:
            raise argparse.ArgumentTypeError(f"got {size!r}, expected WIDTHxHEIGHT[:ROUNDS], 1024 pixels or more")
        sizes.append((int(match[1]), int(match[2]), int(match[3]) if match[3] else None))
    return sizes


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
