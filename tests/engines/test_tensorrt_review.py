"""What TensorRT's users would otherwise meet as a wrong number, a traceback, or advice that leads nowhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from engines.base import BuildConfig, TensorRTOptions, get_backend
from engines.errors import DeployError
from engines.tiling import Tiling
from engines.trt.scales import half_scales
from pipeline.build import BuildRequest, build_bundle
from pipeline.lowering import half_of, rest_of
from pipeline.precision.lower import LowerOptions
from pipeline.scenes_folder import render_folder
from tests.engines.conftest import Start
from tests.engines.tensorrt_api.fakes import called
from tests.engines.tensorrt_api.machine import AMPERE
from tests.engines.trt_graphs import made

TURING = replace(AMPERE, name="Tesla T4", sm=(7, 5))


def test_half_scales_are_refused_before_a_parser_that_reads_them_as_fp32(start: Start) -> None:
    path, old = made("segformer", "int8").path, start("8.6.1")
    graph = onnx.load(path).graph
    scales = {node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert {init.data_type for init in graph.initializer if init.name in scales} == {onnx.TensorProto.FLOAT16}
    with pytest.raises(DeployError, match=r"int8, the rest in fp16: TensorRT 8\.6\.1 .*--rest fp32, or TensorRT 10"):
        old.backend.build(path, BuildConfig("int8"))
    assert not called(old.sdk)


def test_scales_of_bf16_are_refused_where_there_is_no_bf16(start: Start, tmp_path: Path) -> None:
    model = onnx.load(made("segformer", "int8").path)
    for initializer in model.graph.initializer:
        if initializer.name.endswith("__scale__fp16"):
            initializer.data_type = onnx.TensorProto.BFLOAT16
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(DeployError, match=r"int8, the rest in bf16: Tesla T4 has no BF16 .*--rest fp16"):
        start("10.13.3", TURING).backend.build(tmp_path / "m.onnx", BuildConfig("int8"))


def test_only_scales_count(tmp_path: Path) -> None:
    assert half_scales(made("segformer", "int8").path.read_bytes()) == ["fp16"]
    assert half_scales(made("segformer", "fp16").path.read_bytes()) == []
    assert half_scales(b"") == half_scales(b'{"layers": []}') == half_scales(b"\x3a\xff") == []


def test_int8_leaves_the_rest_in_what_the_release_can_scale_in(start: Start) -> None:
    old = start("8.6.1").backend
    assert (half_of(old), rest_of(old)) == ("fp16", "fp32")  # a plan without INT8 may still be FP16
    assert old.refuses_rest("fp32") is None
    new = start("10.13.3", TURING).backend
    assert (half_of(new), rest_of(new)) == ("fp16", "fp16")
    assert "no BF16" in str(new.refuses_rest("bf16"))


def test_a_rest_that_cannot_be_is_refused_before_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(get_backend("openvino")), "refuses_rest", lambda backend, rest: f"no {rest}")
    request = BuildRequest(
        "tests.models:tiny", tmp_path / "b", Tiling(64, 64, 48, 48), "int8", "openvino",
        photographs=(str(render_folder(tmp_path / "scenes", range(1), 64, 64)),), lowering=LowerOptions(rest="fp16"),
    )  # fmt: skip
    said = list[str]()
    with pytest.raises(DeployError, match="--rest fp16: no fp16"):
        build_bundle(request, lambda step, text: said.append(step))
    assert "dataset" not in said


def test_engines_that_are_only_measured_are_built_with_the_same_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, openvino = list[BuildConfig](), get_backend("openvino")
    options, cache = TensorRTOptions(level=2, workspace=1 << 28), tmp_path / "timings"
    build = openvino.build

    def noted(model: Path, config: BuildConfig) -> bytes:
        asked.append(config)
        return build(model, config)

    monkeypatch.setattr(openvino, "build", noted)
    monkeypatch.setattr("pipeline.build.tuning", lambda *_: BuildConfig(tensorrt=options, timing_cache=cache))
    request = BuildRequest(
        "tests.models:tiny", tmp_path / "b", Tiling(64, 64, 48, 48), "auto", "openvino", 1, time_rewrites=True,
        photographs=(str(render_folder(tmp_path / "scenes", range(4), 64, 112)),), lowering=LowerOptions(rest="fp32"),
    )  # fmt: skip
    build_bundle(request, lambda *line: None)
    assert "int8" in {config.precision for config in asked}
    assert {(config.tensorrt, config.timing_cache, config.threads) for config in asked} == {(options, cache, 1)}


def test_a_dla_is_answered_before_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, said = TensorRTOptions(dla=0), list[str]()

    def answer(model: Path, config: BuildConfig) -> bytes:
        assert onnx.load(model).graph.node
        assert config.tensorrt == options
        raise DeployError("--dla 0: the answer")

    monkeypatch.setattr(get_backend("openvino"), "build", answer)
    monkeypatch.setattr("pipeline.build.tuning", lambda *_: BuildConfig(tensorrt=options))
    request = BuildRequest(
        "tests.models:tiny", tmp_path / "b", Tiling(64, 64, 48, 48), "int8", "openvino", tensorrt=options,
        photographs=(str(render_folder(tmp_path / "scenes", range(1), 64, 64)),),
    )  # fmt: skip
    with pytest.raises(DeployError, match="the answer"):
        build_bundle(request, lambda step, text: said.append(step))
    assert "dataset" not in said
    assert not (tmp_path / "b").exists()
