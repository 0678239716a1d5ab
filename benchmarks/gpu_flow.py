"""The whole flow of one backend in one precision, by the command line as a user has it: build, run, compare, time.

    python -m benchmarks.gpu_flow WORK --backend tensorrt --precision fp16 [--model setr-pup] [--batch 2] [--json FILE]

Builds the model, runs it on one rendered frame and on a folder of them, compares every label map with that of fp32
PyTorch on the CPU, and benches it.  Frames, reference and bundles stay in WORK, so that the next backend finds them.
Exit code 0: all of it worked and the labels agree as the precision's gate asks (of random weights, whose classes are
nearly tied, nothing is asked); 1: something failed; 77: this machine or this version cannot.  The last line says what
and why.  With --batch, a gate that refuses the batch has done its work, and is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.peers.models import MODELS, OPEN_GATE, ROOT, PeerModel
from calib.data.scenes import render
from engines.backends import BACKENDS, get_backend
from engines.contract import PRECISIONS

# Of all labels of every frame, near-ties counted: no reference says here which they are.
MIN_LABELS = {"fp32": 0.999, "fp16": 0.998, "bf16": 0.99, "int8": 0.97}

SKIP = 77
LIMIT_S = 900  # of one command
SMALL = PeerModel("small", "a SegFormer of almost no arithmetic", 128, 96, "benchmarks.peers.models:tiny")
KNOWN = {**MODELS, SMALL.name: SMALL}


class Failed(Exception):
    """A command ended badly; the message is its last line.  code: its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Result:
    """status: ok, failed, skipped or refused (by the gate of batches).  agreement: share of labels as in fp32 PyTorch,
    of the worst frame.  bench: what `deploy.py bench --json` wrote.  contexts: one or two, as its first run measured
    them.  log: lines of the build.
    """

    model: str
    backend: str
    precision: str
    batch: int
    status: str = "ok"
    why: str = ""
    sdk: str = ""
    device: str = ""
    build_s: float | None = None
    folder_s: float | None = None
    frames: int = 0
    agreement: float | None = None
    bench: dict[str, Any] = field(default_factory=dict)
    contexts: dict[str, Any] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    date: str = field(default_factory=lambda: str(date.today()))

    def __str__(self) -> str:
        head = f"{self.model} {self.precision} {self.backend}" + (f" batch {self.batch}" if self.batch > 1 else "")
        if self.status != "ok":
            return f"{head}: {self.status}: {self.why}"
        parts = [(part, self.bench.get(f"{part}_ms")) for part in ("frame", "gather", "engine", "stitch")]
        times = ", ".join(f"{part} {stats['p50']:.2f}" for part, stats in parts if stats)
        return (
            f"{head}: {100 * (self.agreement or 0):.3f} % of labels as in fp32 PyTorch (worst of {self.frames}), "
            f"ms p50 {times}; built in {self.build_s:.0f} s; {self.sdk} on {self.device}, {self.date}"
        )


def flow(args: argparse.Namespace) -> Result:
    """Raises Failed."""
    model = KNOWN[args.model]
    result = Result(args.model, args.backend, args.precision, args.batch)
    reason = _cannot(args)
    if reason:
        return replace(result, status="skipped", why=reason)
    frames = write_frames(args.work, args.size, args.frames)
    expected = _reference(args.work, model, frames)
    bundle = args.work / f"{args.model}-{args.backend}-{args.precision}-{args.batch}"
    begin = time.perf_counter()
    try:
        log = _deploy("build-engine", *_words(model, args), "-o", bundle)
    except Failed as error:
        if args.batch > 1 and error.code == 3:
            return replace(result, status="refused", why=str(error))
        raise
    built = time.perf_counter() - begin
    manifest = json.loads((bundle / "manifest.json").read_text())
    masks = args.work / f"{bundle.name}.masks"
    first = sorted(frames.glob("*.png"))[0]
    shutil.rmtree(masks, ignore_errors=True)  # masks of an earlier call must not pass for those of this bundle
    _deploy("run", bundle, first, "-o", masks / "one")
    begin = time.perf_counter()
    _deploy("run", bundle, frames, "-o", masks / "all")
    took = time.perf_counter() - begin
    shares = {path.name: _equal(path, expected / path.name) for path in sorted((masks / "all").glob("*.png"))}
    shares["alone"] = _equal(masks / "one" / first.name, expected / first.name)
    report = args.work / f"{bundle.name}.bench.json"
    _deploy("bench", bundle, "--image", first, "--rounds", args.rounds, "-o", report)
    measured = json.loads((bundle / "manifest.json").read_text()).get("contexts") or {}
    result = replace(
        result, sdk=manifest["sdk"], device=manifest["device"], build_s=built, folder_s=took, frames=len(shares) - 1,
        agreement=min(shares.values()), bench=json.loads(report.read_text()), log=tuple(log),
        contexts=next(iter(measured.values()), {}),
    )  # fmt: skip
    wanted = MIN_LABELS[args.precision] if model.trained else 0.0
    if min(shares.values()) < wanted or len(shares) != args.frames + 1:
        why = f"{100 * min(shares.values()):.3f} % of labels as in fp32 PyTorch, required {100 * wanted:g} %"
        return replace(result, status="failed", why=why)
    return result


def write_frames(work: Path, size: tuple[int, int], count: int, first: int = 1) -> Path:
    """Rendered scenes of `size` (width, height) as PNG, from seed `first`; those that are there already are kept."""
    folder = work / f"frames-{size[0]}x{size[1]}-{first}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in tqdm(range(first, first + count), desc="frames", disable=None, leave=False):
        path = folder / f"{seed}.png"
        if not path.exists():
            Image.fromarray(render(seed, size[1], size[0]).image).save(path, compress_level=1)
    return folder


def _reference(work: Path, model: PeerModel, frames: Path) -> Path:
    """The label maps of fp32 PyTorch on the CPU, made once.  Raises Failed."""
    bundle, masks = work / f"{model.name}-reference", work / f"{model.name}-reference.{frames.name}"
    if not (bundle / "manifest.json").exists():
        size = ("--tile", model.window, "--stride", model.stride)
        _deploy("build-engine", model.source, *size, "--backend", "torch", "-o", bundle)
    if not masks.exists():
        unfinished = masks.with_name(f"{masks.name}.unfinished")  # `run` makes its folder before the first mask
        shutil.rmtree(unfinished, ignore_errors=True)
        _deploy("run", bundle, frames, "-o", unfinished)
        unfinished.rename(masks)
    return masks


def _words(model: PeerModel, args: argparse.Namespace) -> list[object]:
    words: list[object] = [model.source, "--tile", model.window, "--stride", model.stride,
                           "--backend", args.backend, "--precision", args.precision]  # fmt: skip
    if args.precision == "int8":
        words += ["--calib", write_frames(args.work, args.size, 8, first=101)]  # none that is compared afterwards
    if not model.trained and args.precision != "fp32":
        words += OPEN_GATE
    return words + (["--batch", args.batch] if args.batch > 1 else [])


def _cannot(args: argparse.Namespace) -> str | None:
    if args.backend not in BACKENDS:
        return f"this version has no backend {args.backend}"
    backend = get_backend(args.backend)
    reason = backend.unavailable() or backend.supports(args.precision)
    if reason is None and args.batch > 1 and "--batch" not in "".join(_deploy("build-engine", "--help")):
        return "this version builds no batches"
    return reason


def _equal(got: Path, expected: Path) -> float:
    """Share of equal labels, 0 where the file is missing."""
    if not got.exists() or not expected.exists():
        return 0.0
    return float((np.asarray(Image.open(got)) == np.asarray(Image.open(expected))).mean())


def _deploy(verb: str, *words: object) -> list[str]:
    """The lines that `deploy.py` printed, which also go to standard error.  Raises Failed."""
    command = [sys.executable, str(ROOT / "deploy.py"), verb, *map(str, words)]
    print(f"$ deploy.py {' '.join(command[2:])}", file=sys.stderr, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"deploy.py {verb}: not done after {LIMIT_S} s", -1) from error
    print(done.stdout + done.stderr, file=sys.stderr, flush=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode:
        raise Failed(
            f"deploy.py {verb}, exit {done.returncode}: {lines[-1] if lines else 'no output'}", done.returncode
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    args = _arguments().parse_args(argv)
    args.work = args.work.absolute()
    try:
        result = flow(args)
    except Failed as error:
        result = Result(args.model, args.backend, args.precision, args.batch, "failed", str(error))
    if args.json:
        args.json.write_text(json.dumps(asdict(result), indent=1) + "\n")
    print(result)
    return {"ok": 0, "refused": 0, "skipped": SKIP}.get(result.status, 1)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_flow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--backend", required=True, help="such as torch_cuda, torch_compile, tensorrt, tensorrt_rtx")
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--model", choices=KNOWN, default="b0")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=(2048, 1024))
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
