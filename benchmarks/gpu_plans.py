"""What NVIDIA's compiler makes of SegFormer and SETR, step by step: kernels, bytes, what is written as fp32, the floor.

    python -m benchmarks.gpu_plans [--precision fp16] [--tail] [--eight int8 fp8] [--board "AGX Orin 64GB"] [demo ...]

Compiled by TensorRT-RTX on this CPU (`deploy.py inspect --gpu-plan` says what that is and is not): as exported and
rewritten for any backend, in the forms for GPUs, and with --tail without the decoder's tail, which is then a kernel of
ours; then the same in 8 bits, as a build for TensorRT-RTX and `--board` places them, in the forms that suit these.
`demo` has trained weights, the others random ones.  Nothing here has run on a GPU.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from engines.backends import get_backend
from engines.roofline.boards import BOARDS
from engines.roofline.floor import floor_on
from engines.roofline.kernels import KernelPlan
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.export import export, simplify, trace
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.rewrites import apply_rules
from pipeline.graph.tail import ending_for
from pipeline.models.segformer import VARIANTS, SegFormer, SegFormerConfig
from pipeline.models.setr import SETR, SETRConfig
from pipeline.models.vit import ViTConfig
from pipeline.precision.forms import PLANNER, ByPlan, ask, taken
from pipeline.request import Int8Options

SIDES = {"demo512": 512, "demo768": 768, "demo": 1024, "b2": 1024, "naive": 768, "pup": 768, "mla": 768}
TAPS = {"naive": (11,), "pup": (11,), "mla": (2, 5, 8, 11)}
STAGES = {"naive": 1, "pup": 4, "mla": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(SIDES), metavar="MODEL", help=", ".join(SIDES))
    parser.add_argument("--precision", default="fp16", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--board", default="AGX Orin 64GB", choices=[board.name for board in BOARDS])
    parser.add_argument("--tail", action="store_true", help="the engine ends before the decoder's tail, as of --tail")
    parser.add_argument("--eight", nargs="*", default=("int8",), choices=("int8", "fp8"), help="8 bits to add")
    args = parser.parse_args()
    board = next(board for board in BOARDS if board.name == args.board)
    print(f"{'':50}{'kernels':>8}{'MB':>8}{'fp32 MB':>9}{'fused':>8}   floor on {board.name}, ms")
    for name in args.models:
        graph = exact(name)
        formed = taken(graph, ByPlan(args.precision, silent, tail=args.tail), silent)[-1]
        ending = ending_for(get_backend(PLANNER), formed, args.tail)
        plans = {"rewritten": ask(graph, args.precision), "in its forms": ask(formed, args.precision)}
        if ending is not None:
            plans["in its forms, the engine before the tail"] = ask(formed, args.precision, tail=True)
        half = list(plans.values())[-1]
        for what, plan in plans.items():
            print(f"{f'{name}: {what}':50}{described(plan)}   {floor_on(board, plan).roofline or 0:.2f}", flush=True)
        for kind in args.eight if floor_on(board, half).roofline else ():
            eight = Int8Options(kind, backend=PLANNER, board=args.board)
            judge = ByPlan(args.precision, silent, tail=args.tail, eight=eight)
            plan = ask(taken(graph, judge, silent)[-1], args.precision, args.tail, eight)
            what = f"{name}: {kind}{'' if ending is None else ', the engine before the tail'}"
            print(f"{what:50}{described(plan)}   {floor_on(board, plan).roofline or 0:.2f}")
            print(f"  of {args.precision}'s floor: {', '.join(shares(plan, half))}", flush=True)


def silent(step: str, text: str) -> None:
    """No log."""


def shares(plan: KernelPlan, half: KernelPlan) -> list[str]:
    """What is left of the floor of `half`, board by board; placed for one board, looked at on all."""
    floors = [(board.name, floor_on(board, plan).roofline, floor_on(board, half).roofline) for board in BOARDS]
    return [f"{name} {eight / sixteen:.2f}" for name, eight, sixteen in floors if eight and sixteen]


def described(plan: KernelPlan) -> str:
    fp32 = plan.fp32_written - sum(t.bytes for k in plan.kernels for t in k.writes if t.name == "logits")
    fused = f"{plan.fused_attentions}/{plan.attentions}"
    return f"{len(plan.kernels):8}{plan.bytes / 1e6:8.0f}{fp32 / 1e6:9.1f}{fused:>8}"


def exact(name: str) -> OnnxGraph:
    """The graph that every precision is lowered from."""
    side = SIDES[name]
    if name.startswith("demo"):
        exported = load_source("demo", (side, side), SourceOptions()).export()[0]
    else:
        exported = export(trace(_network(name, side).eval(), (side, side)))
    return apply_rules(simplify(exported))[-1]


def _network(name: str, side: int) -> nn.Module:
    torch.manual_seed(0)
    if name in VARIANTS:
        dims, depths, width = VARIANTS[name]
        return SegFormer(SegFormerConfig(dims=dims, depths=depths, decoder_dim=width))
    vit = ViTConfig(window=(side, side), dim=768, depth=12, mlp_dim=3072, taps=TAPS[name])
    kernel = 3 if name == "pup" else 1
    return SETR(SETRConfig(vit=vit, decoder=name, stages=STAGES[name], kernel=kernel))


if __name__ == "__main__":
    main()
