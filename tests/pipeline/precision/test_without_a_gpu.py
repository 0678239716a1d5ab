"""Builds for GPUs where none is: the compiler's kernels stand in for the clock, emulation for the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.backends import get_backend
from engines.contract import Float32
from engines.roofline.floor import floor_on
from engines.tiling.placement import Tiling
from pipeline.build import build_bundle
from pipeline.graph.emulate import emulate
from pipeline.graph.onnx_graph import run_onnx
from pipeline.graph.proto import stored
from pipeline.graph.rewrites import apply_rules
from pipeline.graph.tail import before_tail, ending_for
from pipeline.precision.forms import typed
from pipeline.precision.placement import board_of
from pipeline.precision.planned import Planned, planned, rounds_ms
from pipeline.precision.worth import Worth, against, floor_ms, kernel_plan
from pipeline.request import BuildRequest, LowerOptions
from tests.pipeline.precision.blocks import mix_ffn
from tests.pipeline.precision.lowering import exported
from tests.pipeline.precision.test_targets import ORIN, RTX, compiled, lowered, windows

pytestmark = compiled
needs_none = pytest.mark.skipif(
    get_backend(RTX).only_builds() is None, reason="there is a GPU here, or no TensorRT-RTX: times decide, or nothing"
)


def test_a_planned_session_is_the_emulated_graph_at_its_floor() -> None:
    graph, board = lowered(mix_ffn(), "int8"), board_of(ORIN)
    image: Float32 = windows()[0]
    with planned(graph, get_backend(RTX), board, None) as session:
        np.testing.assert_array_equal(session.run(image), run_onnx(emulate(graph), [image]))
        assert isinstance(session, Planned)
        assert session.floor == floor_on(board, kernel_plan(get_backend(RTX), graph.model)).roofline
        assert rounds_ms([session], image, 3) == [[session.floor] * 3]


def test_what_is_planned_ends_where_the_engine_does() -> None:
    """The decoder's tail is a kernel of ours in every precision: compilers are asked of what is left to them."""
    graph = apply_rules(exported("demo", 128)[0])[-1]
    backend, board, lowered_graph = get_backend(RTX), board_of(ORIN), typed(graph, "fp16")
    ending = ending_for(backend, graph, True)
    assert ending is not None
    assert ending_for(backend, graph, False) is ending_for(get_backend("openvino"), graph, True) is None
    with planned(lowered_graph, backend, board, ending) as cut, planned(lowered_graph, backend, board, None) as whole:
        assert isinstance(cut, Planned)
        assert isinstance(whole, Planned)
        assert cut.floor == floor_ms(kernel_plan(backend, before_tail(lowered_graph, ending)), board) < whole.floor


@pytest.mark.parametrize(("placed_for", "pays"), [(RTX, True), ("tensorrt", False)])
def test_eight_bits_that_do_not_pay_say_so(placed_for: str, pays: bool) -> None:
    """Placed as TensorRT documents it, this block writes FP32 maps on TensorRT-RTX and is slower than FP16."""
    graph = mix_ffn()
    eight, half = lowered(graph, "int8", placed_for), lowered(graph, "fp16")
    with stored(eight.model) as path:
        found = against(get_backend(RTX), path, half.model, board_of(ORIN), "int8", "fp16")
    assert found.pays is pays
    assert ("use --precision fp16" in str(found)) is not pays
    assert (found.bytes < found.half_bytes) is pays
    assert found.to_json()["pays"] is pays


def test_equal_is_not_worth_it() -> None:
    same = Worth(
        "int8", "fp16", board=ORIN, source="x", ms=1.0, half_ms=1.0, bytes=1, half_bytes=1, fp32_written=0
    )  # fmt: skip
    assert not same.pays
    assert replace(same, ms=0.9).pays


@needs_none
@pytest.mark.slow
def test_auto_decides_by_the_roofline(tmp_path: Path) -> None:
    """From the checkpoint to the bundle: the floor of each plan, the emulated loss, and what is shipped."""
    said: list[tuple[str, str]] = []
    request = BuildRequest(
        "demo", tmp_path / "out", Tiling(128, 128, 128, 128), precision="auto", backend=RTX,
        lowering=LowerOptions(smooth=False, bias=False),
    )  # fmt: skip
    build_bundle(request, lambda step, text: said.append((step, text)))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    search = report["search"]
    floors = {trial["name"]: trial["ms"] for trial in search["trials"]}
    assert search["board"] == "RTX 4090"
    assert floors["fp16"] < floors["fp32"]
    assert "int8" in floors
    assert any(step == "auto" and "roofline of RTX 4090" in text for step, text in said)
    assert any(step == "shipped" and text.startswith("emulated") for step, text in said)
    chosen = next(trial for trial in search["trials"] if trial["verdict"].startswith("chosen"))
    assert chosen["ms"] <= min(ms for name, ms in floors.items() if name in ("fp32", "fp16"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    if manifest["precision"] == "int8":
        assert report["roofline"]["pays"]
