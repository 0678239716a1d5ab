"""Several windows a run: what a graph must be for that, and the gate that every such engine passes first.

TensorRT's engines of SegFormer are silently wrong beyond the first item of a batch (NVIDIA/TensorRT issue 4853).  So an
engine that takes N windows is used only after it answered, on the very device, N different windows as an engine of one
window answers each of them alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engines.agreement import Agreement, Gate, compare_logits
from engines.base import Backend, BuildConfig, Float32, Session
from engines.errors import DeployError, GateError

STEP = "batch"  # of the Agreement, and of the log
NEUTRAL = "any number of windows"  # the pass over the graph, in its history


# Both engines make the same roundings and differ by the order of their sums alone, so this may be far tighter than the
# gate against the checkpoint, which allows for the rounding itself: it is about a tenth of that.  An item that is wrong
# is off by about its largest logit.
GATES = {
    "fp32": Gate(1e-4, 0.9999),
    "fp16": Gate(5e-3, 0.999),
    "bf16": Gate(5e-2, 0.995),
    "int8": Gate(1e-1, 0.99),
}
