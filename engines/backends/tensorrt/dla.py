"""The honest answer to a DLA that was asked for: which layers of this network it could run, and that they are too few.

What NVIDIA documents of Orin's DLA (its TensorRT guide, and the operator table of its DLA software): no LayerNorm, no
Erf, and matrix products with constant weights alone, so not the two products of attention.  A transformer falls to
pieces there, and every piece costs a reformat and a hand-over.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from engines.backends.tensorrt.network import ParsedNetwork, held_types
from engines.backends.tensorrt.sdk import member, name_of
from engines.errors import DeployError

_SHOWN = 8  # types of layer


def answer(sdk: Any, title: str, builder: Any, settings: Any, parsed: ParsedNetwork, core: int) -> DeployError:
    """What would run on the DLA.  settings: an IBuilderConfig that is used for nothing else."""
    cores = int(getattr(builder, "num_DLA_cores", 0))
    if cores == 0:
        return DeployError(
            f"--dla {core}: {title} sees no DLA here (Thor and JetPack 7.0 to 7.2 have none); leave it out"
        )
    if core >= cores:
        return DeployError(f"--dla {core}: got core {core}, expected 0 to {cores - 1}; leave it out")
    if not hasattr(settings, "can_run_on_DLA"):
        return DeployError(f"--dla {core}: {title} cannot say what runs on the DLA; leave it out")
    held = held_types(parsed.layers)
    for name, wanted in (("FP16", held["HALF"] or not held["QUANTIZE"]), ("INT8", held["QUANTIZE"])):
        flag = member(sdk, "BuilderFlag", name)  # which the DLA needs one of; gone where networks are strongly typed
        if wanted and flag is not None:
            settings.set_flag(flag)
    settings.DLA_core = core
    every, able = Counter[str](), Counter[str]()
    for layer in parsed.layers:
        kind = name_of(layer.type)
        if kind != "CONSTANT":
            every[kind] += 1
            able[kind] += bool(settings.can_run_on_DLA(layer))
    shares = sorted(every, key=lambda kind: (-able[kind], -every[kind]))
    some = ", ".join(f"{able[kind]} of {every[kind]} {kind}" for kind in shares[:_SHOWN])
    more = f", and {len(shares) - _SHOWN} more types" if len(shares) > _SHOWN else ""
    return DeployError(
        f"--dla {core}: {able.total()} of {every.total()} layers could run on the DLA ({some}{more}); a network like "
        "this does not run there as a whole and would be cut into pieces: leave it out to build for the GPU"
    )
