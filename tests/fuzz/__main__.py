"""Every target for its share of the time: python -m tests.fuzz [TARGET ...] --seconds 600.

libFuzzer (through atheris) mutates, guided by the branches of this project's code and of Pillow's, and watches for
hangs and memory.  A target that ends on a finding starts again with what it had learned, until its time is over.
Inputs that failed are kept in the folder of results; exit code 1 says that there are some.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.fuzz.targets import TARGETS

HANG, MEMORY = 20, 3072  # seconds for one input, megabytes for the process
FINDINGS = 20  # of one target; more tell nothing new
TILING = Path(__file__).parents[2] / "engines" / "tiling"


@dataclass
class Result:
    """inputs: that were run.  seconds: wall clock.  peak_mb: resident.  findings: what happened, by input file."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    peak_mb: int = 0
    findings: dict[str, str] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz everything that reads a file.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default all: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=600, help="of wall clock, in all (600)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="targets at once (all cores)")
    parser.add_argument("--output", type=Path, default=Path("fuzz-results"), metavar="DIR")
    arguments = parser.parse_args()
    names = arguments.targets or list(TARGETS)
    unknown = sorted(set(names) - set(TARGETS))
    if unknown:
        parser.error(f"got the target {unknown[0]}, expected some of {', '.join(TARGETS)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    library = _sanitized(arguments.output) if any(TARGETS[name].sanitized for name in names) else None
    share = max(10, arguments.seconds * arguments.jobs // len(names))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda name: _fuzz(name, share, arguments.output, library), names))
    (arguments.output / "fuzz.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    total = sum(result.inputs for result in results)
    found = sum(len(result.findings) for result in results)
    print(f"{total} inputs, {found} findings; {arguments.output / 'fuzz.json'}")
    return int(bool(found))


def _fuzz(name: str, share: int, output: Path, library: Path | None) -> Result:
    corpus = output / name
    corpus.mkdir(exist_ok=True)
    result = Result(name)
    begin = time.monotonic()
    while (left := share - int(time.monotonic() - begin)) > 0 and len(result.findings) < FINDINGS:
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.fuzz.one", name, str(corpus), f"-max_total_time={left}",
                "-print_final_stats=1", f"-timeout={HANG}", f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={corpus}-",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
            env=_environment(library if TARGETS[name].sanitized else None),
        )  # fmt: skip
        result.inputs += _stat(done.stdout, "number_of_executed_units")
        result.peak_mb = max(result.peak_mb, _stat(done.stdout, "peak_rss_mb"))
        if done.returncode == 0:
            break
        kept = re.search(r"Test unit written to (\S+)", done.stdout)
        result.findings[kept[1] if kept else f"exit {done.returncode}"] = _cause(done.stdout)
    result.seconds = time.monotonic() - begin
    print(
        f"{name:12} {result.inputs:9} inputs {result.seconds:6.0f} s {result.peak_mb:5} MB "
        f"{len(result.findings):3} findings", flush=True,
    )  # fmt: skip
    for file, cause in result.findings.items():
        print(f"  {file}: {cause}", flush=True)
    return result


def _stat(text: str, name: str) -> int:
    found = re.search(rf"stat::{name}:\s*(\d+)", text)
    return int(found[1]) if found else 0


def _cause(text: str) -> str:
    """The exception and where it came from, or what a sanitizer or libFuzzer said."""
    for pattern in (r"^(?:SUMMARY: (?:Addr|Undef)|.*runtime error: ).*", r"^[\w.]+(?:Error|Exception|Warning).*"):
        found = re.findall(pattern, text, re.MULTILINE)
        if found:
            places = re.findall(r'File "(\S+)", line (\d+)', text)
            return f"{found[-1][:200]} {':'.join(places[-1]) if places else ''}"
    found = re.findall(r"^.*ERROR: libFuzzer.*|^SUMMARY.*", text, re.MULTILINE)
    return found[-1][:200] if found else text.strip()[-300:]


def _environment(library: Path | None) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    if library is not None:
        runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        environment |= {
            "LD_PRELOAD": runtime.stdout.strip(), "FUZZ_TILING": str(library.resolve()),
            # libFuzzer keeps the input when the process aborts; and it must not lose its own handlers.
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:handle_segv=0:handle_abort=0:"
            "allocator_may_return_null=1:quarantine_size_mb=16",
        }  # fmt: skip
    return environment


def _sanitized(folder: Path) -> Path:
    library = folder / "tile-sanitized.so"
    flags = ["-std=c11", "-O1", "-g", "-ffp-contract=off", "-fno-trapping-math", "-pthread", "-shared", "-fPIC"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DTILE_NO_CLONES"]
    sources = map(str, sorted(TILING.glob("*.c")))
    subprocess.run(["gcc", *flags, *sanitizers, *sources, "-o", str(library), "-lm"], check=True)
    return library


if __name__ == "__main__":
    sys.exit(main())
