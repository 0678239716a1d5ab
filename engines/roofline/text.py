"""A plan in words and tables, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.roofline.floor import Floor
from engines.roofline.kernels import Kernel, KernelPlan, Operand

TOP = 10  # kernels shown
NAMES = 60  # characters shown of the nodes that a kernel came from
PROXY = (
    "a proxy: the compiler is of TensorRT's family, its kernels are not those of TensorRT on a Jetson or a data centre"
)
BOUND = "lower bounds, never latencies: every tensor of a kernel moves once, and launches cost nothing"


def remarks(plan: KernelPlan) -> tuple[str, ...]:
    """What has to be known to read the numbers right."""
    said = [PROXY, BOUND] if plan.proxy else [BOUND]
    scaled = sum(tensor.bytes for kernel in plan.kernels for tensor in _int8_as_fp32(kernel))
    if plan.proxy and scaled:
        said.append(
            f"pessimistic for int8: INT8 convolutions write fp32 here ({_mb(scaled)}), which a second kernel scales; "
            "TensorRT documents some that scale as they write"
        )
    if plan.unknown:
        said.append(
            f"{plan.unknown} kernels multiply an amount that does not follow from their tensors: it counts as 0"
        )
    return tuple(said)


def text(plan: KernelPlan, floors: Sequence[Floor], what: str, remarks: Sequence[str]) -> str:
    """what: that was planned, in words."""
    height, width = plan.window
    rows = [
        ("plan", f"{what} of {width}x{height} pixels"),
        ("read from", plan.source),
        *(("", remark) for remark in remarks),
        ("kernels", str(len(plan.kernels))),
        ("moved", f"{_mb(plan.bytes)}, of it {_mb(plan.fp32_written)} written as fp32"),
        ("attentions", f"{plan.fused_attentions} of {plan.attentions} fused"),
        ("multiply-adds", f"{plan.macs / 1e9:.2f} G: {_shares(plan.macs_by_type)}"),
        ("bytes", _shares(plan.bytes_by_type)),
    ]
    blocks = [
        "\n".join(f"{name:14}{said}" for name, said in rows),
        _aligned([["map", "kernels", "MB", "%"], *_stage_rows(plan)]),
        "\n".join(_kernel_row(kernel) for kernel in plan.top(TOP)),
        _aligned([["ms at least", "memory", "arithmetic", "roofline"], *map(_floor_row, floors)]),
    ]
    return "\n\n".join(blocks)


def _int8_as_fp32(kernel: Kernel) -> list[Operand]:
    return [tensor for tensor in kernel.writes if kernel.computes_in == "int8" and tensor.type == "fp32"]


def _stage_rows(plan: KernelPlan) -> list[list[str]]:
    return [
        [stage, str(plan.stages.count(stage)), f"{moved / 1e6:.1f}", f"{100 * moved / plan.bytes:.1f}"]
        for stage, moved in plan.bytes_by_stage.items()
    ]


def _kernel_row(kernel: Kernel) -> str:
    tensors = f"{', '.join(map(str, kernel.reads))} -> {', '.join(map(str, kernel.writes))}"
    names = ", ".join(kernel.layers) or kernel.name
    names = names if len(names) <= NAMES else f"{names[: NAMES - 1]}…"
    return f"{kernel.bytes / 1e6:8.1f} MB  {kernel.kind:16}  {tensors}  {names}"


def _floor_row(floor: Floor) -> list[str]:
    if floor.lacks:
        return [floor.board, f"has no {' and no '.join(floor.lacks)}", "", ""]
    times = (floor.memory, floor.arithmetic, floor.roofline)
    return [floor.board, *(f"{time:.2f}" if time >= 0.1 else f"{time:.4f}" for time in times if time is not None)]


def _shares(counts: Mapping[str, int]) -> str:
    whole = sum(counts.values()) or 1
    return ", ".join(f"{kind} {100 * count / whole:.1f} %" for kind, count in counts.items()) or "none"


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Names to the left, numbers to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for name, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, others, strict=True))
        lines.append("  ".join((name.ljust(first), *numbers)).rstrip())
    return "\n".join(lines)
