"""python -m tests.engines.gpu.emulated LIBRARY: every case; for sanitizers, which must be loaded before Python."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.kernel_cases import check
from tests.engines.gpu.emulated import Emulated

wrong = [f"{text}: {differences} values" for text, differences in check(Emulated(Path(sys.argv[1]))) if differences]
print(*wrong[:20], f"{len(wrong)} cases differ", sep="\n")
sys.exit(bool(wrong))
