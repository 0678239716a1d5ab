"""What NVIDIA's compiler makes of SegFormer and SETR, step by step: kernels, bytes, what is written as fp32, the floor.

    python -m benchmarks.gpu_plans [--precision fp16] [--board "AGX Orin 64GB"] [demo b2 pup ...]

Compiled by TensorRT-RTX on this CPU (`deploy.py inspect --gpu-plan` says what that is and is not): as exported and
rewritten for any backend, in the forms for GPUs, and without the decoder's tail, which is a kernel of ours.  `demo` has
trained weights, the others random ones: a plan does not depend on them.  Nothing here has run on a GPU.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from engines.roofline.boards import BOARDS
from engines.roofline.floor import floor_on
from engines.roofline.kernels import KernelPlan
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.export import export, simplify, trace
from pipeline.graph.forms import FORMS
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.rewrites import apply_rule, apply_rules
from pipeline.graph.tail.ending import find
from pipeline.models.segformer import VARIANTS, SegFormer, SegFormerConfig
from pipeline.models.setr import SETR, SETRConfig
from pipeline.models.vit import ViTConfig
from pipeline.precision.forms import ByPlan, ask

SIDES = {"demo512": 512, "demo768": 768, "demo": 1024, "b2": 1024, "naive": 768, "pup": 768, "mla": 768}
TAPS = {"naive": (11,), "pup": (11,), "mla": (2, 5, 8, 11)}
STAGES = {"naive": 1, "pup": 4, "mla": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(SIDES), metavar="MODEL", help=", ".join(SIDES))
    parser.add_argument("--precision", default="fp16", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--board", default="AGX Orin 64GB", choices=[board.name for board in BOARDS])
    args = parser.parse_args()
    board = next(board for board in BOARDS if board.name == args.board)
    print(f"{'':50}{'kernels':>8}{'MB':>8}{'fp32 MB':>9}{'fused':>8}   floor on {board.name}, ms")
    for name in args.models:
        graph = exact(name)
        judge = ByPlan(args.precision, lambda step, text: None, tail=True)
        formed = graph
        for form in FORMS:
            trial = apply_rule(formed, form)
            if trial.history[-1].places and judge(form, formed, trial)[0]:
                formed = trial
        rows = [("rewritten", graph, False), ("in its forms", formed, False)]
        if not isinstance(find(formed), str):
            rows.append(("in its forms, the engine before the tail", formed, True))
        for what, each, tail in rows:
            plan = ask(each, args.precision, tail)
            floor = floor_on(board, plan)
            print(f"{f'{name}: {what}':50}{described(plan)}   {floor.roofline or 0:.2f}")


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
