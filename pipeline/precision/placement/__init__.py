"""Where 8 bits stand in a graph, by the backend that it is built for."""

from __future__ import annotations

from dataclasses import replace

from engines.contract import Backend
from engines.errors import DeployError
from engines.roofline.boards import BOARDS, Board
from pipeline.precision.placement import openvino, tensorrt, tensorrt_rtx
from pipeline.precision.placement.rules import Placement
from pipeline.precision.plan import EIGHT_BIT
from pipeline.request import Int8Options

PLACEMENTS = {
    "openvino": openvino.PLACEMENT,
    "tensorrt": tensorrt.PLACEMENT,
    "tensorrt_rtx": tensorrt_rtx.PLACEMENT,
}


def placement_of(backend: str) -> Placement:
    """Of a backend that has rules of its own, or those that are good everywhere."""
    return PLACEMENTS.get(backend, openvino.PLACEMENT)


def board_of(name: str) -> Board:
    """Raises DeployError for one that is not known."""
    for board in BOARDS:
        if board.name == name:
            return board
    raise DeployError(f"--board: got {name!r}, expected one of {', '.join(board.name for board in BOARDS)}")


def board_on(backend: Backend, asked: str, kind: str) -> str:
    """Whose roofline decides: the one that is asked for, the GPU here if it is known, else what the backend assumes."""
    words = set(backend.device().split()) if backend.on_gpu else set()
    here = next((board.name for board in BOARDS if set(board.name.split()) - {"SXM"} <= words), "")
    assumed = placement_of(backend.name).board
    if assumed and kind not in board_of(assumed).peaks:
        assumed = next(board.name for board in BOARDS if kind in board.peaks)
    return asked or here or assumed


def aimed(options: Int8Options, backend: Backend, kind: str) -> Int8Options | None:
    """For this backend and its board, in int8 or fp8; None of another precision."""
    return (
        None
        if kind not in EIGHT_BIT
        else replace(options, kind=kind, backend=backend.name, board=board_on(backend, options.board, kind))
    )
