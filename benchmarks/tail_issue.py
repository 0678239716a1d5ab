"""What the tail's machine code costs a GPU at least, counted: no GPU is needed, and none has run it.

    python -m benchmarks.tail_issue [--sm 90] [--classes 19] [--json FILE]

For a window of 1024x1024 (logits at a quarter, maps at 1/2, 1/4 and 1/8 of these) of B0's decoder and of B2's: how many
instructions a warp issues for 64 pixels times 32 channels, of which multiply-adds, and the time that a GPU needs where
each of its processors issues four instructions a cycle (`issue`), where it multiplies and adds and does nothing else
(`FMA`), and where its load unit moves 32 words a cycle between memory and registers, shuffles and broadcasts counted
whole (`load`).  The kernel takes at least as long as the longest; what waits, for memory or at a barrier, comes on top.
Loops are told apart by what is in them; the script stops where it does not find what it knows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from engines.errors import DeployError
from engines.gpu.compile import compile_kernels
from engines.tiling.tail import CHUNK, TailShape

DECODERS = {"B0": (32, 256), "B2": (64, 768)}  # inputs, channels
MAPS = ((128, 128), (64, 64), (32, 32))
GPUS = {"H100 SXM": (132, 1.98), "AGX Orin 64GB": (16, 1.3)}  # processors, GHz of the data sheets
MULTIPLIES = ("FFMA", "FMUL", "FADD")
WORDS = {"": 1, "64": 2, "128": 4}
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)(.*?);")


@dataclass(frozen=True)
class Cost:
    """Of a warp, for 64 pixels times a chunk of channels.  words: a lane's, through the load unit."""

    instructions: float
    multiplies: float
    words: float

    @classmethod
    def of(cls, code: list[tuple[str, str]], times: float = 1) -> Cost:
        names = Counter(name.split(".")[0] for name, _ in code)
        words = sum(_words(name) for name, _ in code)
        return cls(times * len(code), times * sum(names[name] for name in MULTIPLIES), times * words)

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def _words(name: str) -> int:
    kind, *how = name.split(".")
    if kind not in ("LDS", "LDG", "STS", "STG", "LDGSTS", "SHFL"):
        return 0
    return WORDS[next((width for width in how if width in WORDS), "")]


class Code:
    """A kernel's instructions, (name, operands), and its loops, [first, last] each."""

    def __init__(self, listing: str, kernel: str) -> None:
        section = re.search(rf"^\.text\.{kernel}:\n(.*?)(?:^\s*\.section|\Z)", listing, re.M | re.S)
        if section is None:
            raise DeployError(f"tail_issue: the cubin has no kernel {kernel}")
        self.code: list[tuple[str, str]] = []
        labels: dict[str, int] = {}
        for line in section[1].splitlines():
            if label := re.match(r"(\.L_\w+):", line):
                labels[label[1]] = len(self.code)
            elif found := INSTRUCTION.match(line):
                self.code.append((found[2], found[3]))
        self.loops, self.starts = [], {0, *labels.values()}
        for at, (name, operands) in enumerate(self.code):
            target = re.search(r"\((\.L_\w+)\)", operands)
            if name.startswith("BRA") and target:
                self.starts.add(at + 1)
                if labels[target[1]] <= at:
                    self.loops.append((labels[target[1]], at))

    def count(self, part: tuple[int, int], *names: str) -> int:
        return sum(name.split(".")[0] in names for name, _ in self.code[part[0] : part[1] + 1])

    def within(self, part: tuple[int, int]) -> list[tuple[str, str]]:
        return self.code[part[0] : part[1] + 1]

    def blocks(self, part: tuple[int, int]) -> list[tuple[int, int]]:
        starts = sorted(start for start in self.starts if part[0] <= start <= part[1])
        return list(zip(starts, [start - 1 for start in starts[1:]] + [part[1]], strict=True))


def cost(code: Code, shape: TailShape) -> dict[str, Cost]:
    """By part of the work.  Raises DeployError where the code is not as this script knows it."""
    block = shape.block
    if block.groups > 1:
        raise DeployError(f"tail_issue: got {shape.classes} classes, expected 24 at most")
    chunk = max(code.loops, key=lambda loop: code.count(loop, "FFMA"))
    inner = [loop for loop in code.loops if chunk[0] <= loop[0] and loop[1] <= chunk[1] and loop != chunk]
    sums = 2 * block.classes  # multiply-adds of a thread's 8 pixels and a channel
    project = [loop for loop in inner if code.count(loop, "FFMA") % 256 == 0 and code.count(loop, "FFMA")]
    classify = [loop for loop in inner if code.count(loop, "FFMA") == 4 * sums and code.count(loop, "SHFL") == 32]
    maps = [loop for loop in inner if code.count(loop, "LDG") >= 2 * (12 + 8 + 6)]
    copies = [loop for loop in inner if code.count(loop, "LDGSTS") and loop[1] - loop[0] < 60]
    if (len(project), len(classify), len(maps), len(copies)) != (1, 2, 1, 2):
        found = f"{len(project)}, {len(classify)}, {len(maps)} and {len(copies)}"
        raise DeployError(f"tail_issue: got {found} loops that project, classify, sample and copy, expected 1, 2, 1, 2")
    samples = {loads: [b for b in code.blocks(maps[0]) if code.count(b, "LDG") == loads] for loads in (12, 8, 6)}
    if any(len(found) != 2 for found in samples.values()):
        raise DeployError("tail_issue: got samples of another form, expected two parts of each ratio")
    known = {at for loop in (*project, *classify, *maps, *copies) for at in range(loop[0], loop[1] + 1)}
    rest = [code.code[at] for at in range(chunk[0], chunk[1] + 1) if at not in known]
    rows = code.count(project[0], "FFMA") // 64
    parts = {
        "project": Cost.of(code.within(project[0]), shape.inputs / rows),
        "sample": sum((Cost.of(code.within(b)) for found in samples.values() for b in found), Cost(0, 0, 0)),
        "classify": sum((Cost.of(code.within(loop), 4) for loop in classify), Cost(0, 0, 0)),
        "rest": Cost.of(rest),
    }  # fmt: skip
    fours = (CHUNK * block.classes // 4, CHUNK * shape.inputs // 4)  # in the order of the code
    for loop, count in zip(sorted(copies), fours, strict=True):
        parts["rest"] += Cost.of(code.within(loop), count / block.threads)
    return parts


def nvdisasm() -> str:
    """Of the CUDA toolkit, or of the wheel nvidia-cuda-nvdisasm.  Raises DeployError where there is neither."""
    root = importlib.util.find_spec("nvidia")
    places = [str(Path(folder) / "cu13" / "bin") for folder in (root.submodule_search_locations or ())] if root else []
    tool = shutil.which("nvdisasm", path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
    if tool is None:
        raise DeployError("no nvdisasm here; pip install nvidia-cuda-nvdisasm")
    return tool


def listing(cubin: bytes) -> str:
    """The machine code of all kernels."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tile.cubin"
        path.write_bytes(cubin)
        return subprocess.run([nvdisasm(), "-c", path], capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text, report = listing(compile_kernels(divmod(args.sm, 10))), []
    for suffix in ("f32", "f16"):
        for name, (inputs, channels) in DECODERS.items():
            shape = TailShape(256, 256, inputs, channels, args.classes, MAPS)
            parts = cost(Code(text, f"tail_to_{shape.block.classes}_{suffix}"), shape)
            total = sum(parts.values(), Cost(0, 0, 0))
            warps = shape.height * shape.width // 64 * channels // CHUNK
            print(f"{name} {suffix}, sm_{args.sm}: of a warp, for 64 pixels times {CHUNK} channels")
            for what, part in {**parts, "all": total}.items():
                share = f"{part.multiplies / part.instructions:4.0%} multiply-adds"
                print(f"  {what:9}{part.instructions:6.0f} instructions, {share}, {part.words:5.0f} words")
            for gpu, (processors, ghz) in GPUS.items():
                cycles = {
                    "issue": total.instructions / 4, "FMA": total.multiplies / 4, "load": total.words,
                }  # fmt: skip
                ms = {what: warps * each / processors / ghz / 1e6 for what, each in cycles.items()}
                print(f"  {gpu}: " + ", ".join(f"{what} {each:.3f} ms" for what, each in ms.items()))
                report.append({"decoder": name, "maps": suffix, "gpu": gpu, **asdict(total), "ms": ms})
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
