"""Kills build-engine, calibrate, compare and run at random moments: python -m tests.fuzz.kill --times 300.

Every kill is SIGKILL to the command and all that it started, as for want of memory or power.  What was asked for before
is then there as it was, or what was asked for now, whole: never a part of either, and never nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import deploy
from calib.ranges.ranges import Ranges
from engines.bundle import open_bundle
from engines.files import file_sha256
from engines.segmenter import open_segmenter

MODEL = "tests.models:tiny"
TILE = ["--tile", "64x96", "--stride", "48x64", "--threads", "1"]


@dataclass(frozen=True)
class Verb:
    """old: the command that has been run before.  new: the one that is killed.  whole: raises unless what it is given
    is complete and of one of the two; both write `output`.
    """

    name: str
    output: Path
    old: Sequence[str]
    new: Sequence[str]
    whole: Callable[[Path], None]


def verbs(folder: Path) -> list[Verb]:
    """The four verbs that write, on small inputs in `folder`."""
    photographs, bundle = folder / "photographs", folder / "bundle"
    build = ["build-engine", MODEL, *TILE, "--backend", "openvino", "-o", str(bundle)]
    ranges = ["calibrate", MODEL, str(photographs), *TILE, "-o", str(folder / "ranges.json")]
    masks = ["run", str(folder / "kept"), str(photographs), "-o", str(folder / "masks"), "--confidence"]
    compare = ["compare", MODEL, *TILE, "--data", str(folder / "labelled"), "--backend", "openvino", "--rounds", "1"]
    report = [*compare, "-o", str(folder / "report"), "--precisions"]
    return [
        Verb("build-engine", bundle, build, [*build, "--blend", "gaussian"], _bundle),
        Verb("calibrate", folder / "ranges.json", [*ranges, "--method", "max"], [*ranges, "--method", "mse"], _ranges),
        Verb("run", folder / "masks", masks, [*masks, "--overlay"], _masks),
        Verb("compare", folder / "report", [*report, "fp32"], [*report, "fp32,bf16"], _report),
    ]


def _bundle(path: Path) -> None:
    open_bundle(path).check()
    with open_segmenter(path, threads=1) as (segmenter, _):
        segmenter.segment(np.zeros((64, 96, 3), np.uint8))


def _ranges(path: Path) -> None:
    assert Ranges.load(path).images == 3


def _masks(path: Path) -> None:
    """Every file that has its final name is complete; `run` writes several at once."""
    for file in path.iterdir():
        if not file.name.startswith("."):
            with Image.open(file) as image:
                image.load()


def _report(path: Path) -> None:
    body = json.loads((path / "compare.json").read_text())
    assert {row["precision"] for row in body["rows"]} >= {"fp32"}
    for row in body["rows"]:
        if row.get("folder"):
            open_bundle(path / row["folder"]).check()


def prepare(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("photographs", "labelled/images", "labelled/labels"):
        (folder / name).mkdir(parents=True)
    for index in range(3):
        image = Image.fromarray(rng.integers(0, 256, (64, 160, 3), np.uint8))
        image.save(folder / "photographs" / f"{index}.png")
        image.save(folder / "labelled" / "images" / f"{index}.png")
        Image.fromarray(rng.integers(0, 5, (64, 160), np.uint8)).save(folder / "labelled" / "labels" / f"{index}.png")
    code = deploy_in_a_child(["build-engine", MODEL, *TILE, "--backend", "openvino", "-o", str(folder / "kept")], None)
    assert code == 0, f"the bundle to run could not be built: exit {code}"


def deploy_in_a_child(arguments: Sequence[str], kill_after: float | None) -> int:
    """The exit code of a command in a process group of its own, -9 where it was killed after that many seconds."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        code = 1
        try:
            code = deploy.main(arguments)
        finally:
            os._exit(code)
    begin = time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if kill_after is not None and time.monotonic() - begin > kill_after:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL
        time.sleep(0.002)


def digests(path: Path) -> dict[str, str]:
    """sha256 by name of what is at `path`, a file or a folder; hidden leftovers of a killed process do not count."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    shown = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path.parent).parts)]
    return {file.relative_to(path.parent).as_posix(): file_sha256(file) for file in shown}


def exercise(verb: Verb, times: int, rng: random.Random) -> dict[str, int]:
    """Kill `verb` that often.  Returns how many ended as the old, as the new, and done before the kill.

    Raises AssertionError naming the moment at which something was lost.
    """
    assert deploy_in_a_child(verb.old, None) == 0, f"{verb.name}: the command fails by itself"
    begin = time.monotonic()
    counts = {"old": 0, "new": 0, "done": 0}
    backup = verb.output.with_name(f"{verb.output.name}-before")
    _copy(verb.output, backup)
    assert deploy_in_a_child(verb.new, None) == 0, f"{verb.name}: the command fails by itself"
    whole_time = time.monotonic() - begin
    for _ in range(times):
        _copy(backup, verb.output)
        before = digests(verb.output)
        # Half of them towards the end, where files take each other's places.
        moment = whole_time * (rng.uniform(0, 1) if rng.random() < 0.5 else rng.uniform(0.8, 1.05))
        code = deploy_in_a_child(verb.new, moment)
        assert code in (0, -signal.SIGKILL), f"{verb.name}: exit {code} after {moment:.3f} s"
        assert verb.output.exists(), f"{verb.name}, killed after {moment:.3f} s: {verb.output.name} is gone"
        after = digests(verb.output)
        if verb.output.name == "masks":  # one file after another: each is the old or the new
            assert before.keys() <= after.keys(), f"{verb.name}, killed after {moment:.3f} s: a mask is gone"
        if code == 0:
            counts["done"] += 1
        else:
            counts["old" if after == before else "new"] += 1
        if after != before:
            child = os.fork()  # engines are loaded elsewhere, so that this process can go on forking
            if not child:
                status = 1
                try:
                    verb.whole(verb.output)
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0, f"{verb.name}, killed after {moment:.3f} s: what is there is not whole"
        for leftover in verb.output.parent.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
            leftover.unlink(missing_ok=True)
    return counts


def _copy(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kill", description="Kill every verb that writes.")
    parser.add_argument("--times", type=int, default=300, help="kills in all (300)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder = Path(name)
        prepare(folder)
        for verb in verbs(folder):
            begin = time.monotonic()
            counts = exercise(verb, -(-arguments.times // 4), rng)
            print(f"{verb.name:12} {counts} in {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    import openvino  # noqa: F401  (imported once, before the forks)
    import torch  # noqa: F401

    import pipeline.build
    import pipeline.compare.run  # noqa: F401

    sys.exit(main())
