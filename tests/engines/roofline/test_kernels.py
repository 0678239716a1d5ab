"""What a plan says about its kernels, against sums made by hand."""

from __future__ import annotations

import json

import pytest

from engines.errors import DeployError
from engines.roofline.boards import BOARDS, Board
from engines.roofline.floor import arithmetic_ms, floor_on, floors, memory_ms
from engines.roofline.kernels import Kernel, KernelPlan, Operand

WINDOW = (512, 768)
BOARD = Board("a board", 100.0, {"fp16": 10.0, "fp32": 5.0}, "made up")


def tensor(*shape: int, type: str = "fp16") -> Operand:
    return Operand("t", shape, type)


def kernel(*touched: Operand, constants: tuple[Operand, ...] = (), macs: int | None = 0, type: str = "") -> Kernel:
    """The last of `touched` is written, the others are read."""
    *reads, write = touched
    return Kernel("k", "kgen", tuple(reads), constants=constants, writes=(write,), macs=macs, computes_in=type)


def plan(*kernels: Kernel) -> KernelPlan:
    return KernelPlan("nothing", True, WINDOW, kernels=kernels, attentions=0)


@pytest.mark.parametrize(
    ("shape", "type", "wanted"),
    [((1, 3, 4, 5), "fp32", 240), ((1, 3, 4, 5), "fp16", 120), ((7,), "int4", 4), ((), "int64", 8), ((9,), "fp8", 9)],
)
def test_bytes(shape: tuple[int, ...], type: str, wanted: int) -> None:
    assert tensor(*shape, type=type).bytes == wanted


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(DeployError, match="got type 'Half', expected one of fp32, fp16"):
        tensor(1, type="Half")


def test_sums() -> None:
    found = plan(
        kernel(tensor(100), tensor(50, type="fp32"), macs=1000, type="fp16", constants=(tensor(10, type="int8"),)),
        kernel(tensor(50, type="fp32"), tensor(8), macs=None),
        kernel(tensor(8), tensor(8), macs=500, type="fp32"),
    )
    assert found.bytes == (200 + 10 + 200) + (200 + 16) + (16 + 16)
    assert found.fp32_written == 200
    assert (found.macs, found.unknown) == (1500, 1)
    assert found.macs_by_type == {"fp16": 1000, "fp32": 500}
    assert found.bytes_by_type == {"fp32": 400, "fp16": 248, "int8": 10}
    assert [each.bytes for each in found.top(2)] == [410, 216]


def test_kernels_of_our_own_count_with_the_engines() -> None:
    first = kernel(tensor(1, 3, 512, 768), tensor(1, 32, 16, 24), macs=70, type="fp16")
    own = kernel(tensor(1, 32, 16, 24), tensor(1, 5, 128, 192, type="fp32"), macs=30, type="fp32")
    last = kernel(tensor(1, 32, 16, 24), tensor(1, 32, 16, 24))
    both = plan(first, last).then(own)
    assert (both.macs, both.fp32_written) == (100, 4 * 5 * 128 * 192)
    assert both.bytes == first.bytes + last.bytes + own.bytes
    assert both.stages == ("1/1", "1/32", "1/4 up")
    assert len(plan(first, last).kernels) == 2


def test_stages_are_where_the_network_is_on_its_way_down_and_up() -> None:
    """A SegFormer's: the keys of a stage's attention are as coarse as the last stage, and lie in their own."""
    found = plan(
        kernel(tensor(1, 3, 512, 768), tensor(1, 32, 128, 192)),
        kernel(tensor(1, 32, 128, 192), tensor(1, 128 * 192, 32)),
        kernel(tensor(1, 16 * 24, 32), tensor(1, 16 * 24, 64)),
        kernel(tensor(1, 128 * 192, 32), tensor(1, 128 * 192, 32)),
        kernel(tensor(1), tensor(1)),  # which touches no map
        kernel(tensor(1, 64, 64, 96), tensor(1, 64 * 96, 64)),
        kernel(tensor(1, 16 * 24, 256), tensor(1, 16 * 24, 256)),
        kernel(tensor(1, 256, 16, 24), tensor(1, 256, 64, 96)),
        kernel(tensor(1, 256, 16, 24), tensor(1, 256, 16, 24)),
        kernel(tensor(1, 256, 64, 96), tensor(1, 256, 128, 192)),
    )
    assert found.stages == ("1/1", "1/4", "1/4", "1/4", "1/8", "1/8", "1/8", "1/8", "1/32", "1/4 up")
    assert list(found.bytes_by_stage) == ["1/1", "1/4", "1/8", "1/32", "1/4 up"]
    assert sum(found.bytes_by_stage.values()) == found.bytes


def test_a_vision_transformer_has_its_class_token_and_one_resolution() -> None:
    found = plan(
        kernel(tensor(1, 3, 512, 768), tensor(1, 1537, 64)), kernel(tensor(1, 1537, 64), tensor(4, 1537, 16)),
        kernel(tensor(1, 1536, 64), tensor(1, 64, 32, 48)), kernel(tensor(1, 64, 32, 48), tensor(1, 64, 256, 384)),
    )  # fmt: skip
    assert found.stages == ("1/1", "1/16", "1/16", "1/2 up")


def test_no_map_at_all() -> None:
    assert plan(kernel(tensor(3), tensor(5))).stages == ("other",)


def test_json_has_every_kernel_with_its_stage() -> None:
    body = json.loads(json.dumps(plan(kernel(tensor(1, 3, 512, 768), tensor(1, 8, 64, 96), macs=None)).to_json()))
    assert body["kernels"][0]["stage"] == "1/1"
    assert body["kernels"][0]["bytes"] == body["bytes"] == 2 * (3 * 512 * 768 + 8 * 64 * 96)
    assert body["kernels"][0]["macs"] is None
    assert body["unknown"] == 1


def test_the_roofline_takes_the_larger_of_each_kernel() -> None:
    """One is bound by memory, one by arithmetic: the floor is more than either sum alone."""
    moves = kernel(tensor(50_000_000), tensor(50_000_000), macs=5_000_000_000, type="fp16")  # 2 ms, 1 ms
    multiplies = kernel(tensor(500_000), tensor(500_000), macs=20_000_000_000, type="fp16")  # 0.02 ms, 4 ms
    assert (memory_ms(BOARD, moves), arithmetic_ms(BOARD, moves)) == pytest.approx((2.0, 1.0))
    found = floor_on(BOARD, plan(moves, multiplies))
    assert (found.memory, found.arithmetic, found.roofline) == pytest.approx((2.02, 5.0, 6.0))


def test_what_is_not_known_adds_no_time() -> None:
    assert floor_on(BOARD, plan(kernel(tensor(50), tensor(50), macs=None))).arithmetic == 0


def test_a_board_without_the_type_has_no_floor() -> None:
    found = floor_on(BOARD, plan(kernel(tensor(1, type="fp8"), tensor(1), macs=5, type="fp8")))
    assert (found.lacks, found.memory, found.roofline) == (("fp8",), None, None)


def test_boards_hold_together() -> None:
    """Dense peaks double with every halving of the width, but where a source says otherwise; each names its source."""
    assert len({board.name for board in BOARDS}) == len(BOARDS) == 8
    for board in BOARDS:
        assert "data sheet" in board.source or "whitepaper" in board.source
        assert board.peaks["int8"] / board.peaks["fp16"] == pytest.approx(2, rel=0.01)
        assert board.peaks.get("fp8", board.peaks["int8"]) == board.peaks["int8"]
        assert board.peaks["fp32"] <= board.peaks["fp16"] / 2 + 0.1
    assert {board.name for board in BOARDS if "fp8" not in board.peaks} == {
        "Orin Nano Super", "Orin NX 16GB", "AGX Orin 64GB", "T4",
    }  # fmt: skip


def test_twice_the_bandwidth_is_half_the_time() -> None:
    """Of a plan without multiply-adds, on every board."""
    only = plan(kernel(tensor(10**9), tensor(10**9)))
    for board, found in zip(BOARDS, floors(only), strict=True):
        assert found.roofline == pytest.approx(4000 / board.gb_per_s)
