"""What TensorRT's users would otherwise meet as a wrong number, a traceback, or advice that leads nowhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import deploy
from calib.data.scenes import render_folder
from calib.ranges.split import split
from engines.arguments import groups, values
from engines.backends import get_backend
from engines.backends.tensorrt.scales import half_scales
from engines.contract import BuildConfig, TensorRTOptions
from engines.errors import DeployError
from engines.gpu.info import GpuInfo
from engines.proof.rebuild import tuning
from engines.tiling.placement import Tiling
from pipeline.build import build_bundle
from pipeline.precision.as_asked import half_of, rest_of
from pipeline.request import BuildRequest, LowerOptions
from tests.engines.backends.tensorrt.api.fakes import RTX, called, say
from tests.engines.backends.tensorrt.api.machine import AMPERE, ORIN
from tests.engines.backends.tensorrt.graphs import made
from tests.engines.conftest import Start

pytestmark = pytest.mark.usefixtures("exports_once")

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
        "tests.models:tiny", tmp_path / "b", Tiling(64, 64, 48, 48), precision="int8", backend="openvino",
        photographs=split([str(render_folder(tmp_path / "scenes", range(1), 64, 64))]),
        lowering=LowerOptions(rest="fp16"),
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
    monkeypatch.setattr("pipeline.build.tuning", lambda *_, **__: BuildConfig(tensorrt=options, timing_cache=cache))
    request = BuildRequest(
        "tests.models:tiny", tmp_path / "b", Tiling(64, 64, 48, 48), precision="auto", backend="openvino", threads=1,
        time_rewrites=True,
        photographs=split([str(render_folder(tmp_path / "scenes", range(4), 64, 112))]),
        lowering=LowerOptions(rest="fp32"),
    )  # fmt: skip
    build_bundle(request, lambda *line: None)
    assert "int8" in {config.precision for config in asked}
    assert {(config.tensorrt, config.timing_cache, config.threads) for config in asked} == {(options, cache, 1)}


@pytest.mark.parametrize("which", [0, 1])
def test_an_address_that_is_refused_runs_nothing(start: Start, model: Path, which: int) -> None:
    machine, taken = start("10.3.0"), list[str]()
    blob = machine.backend.build(model, BuildConfig())

    def refuse(context: Any, name: str, memory: int) -> bool:
        taken.append(name)
        say(machine.sdk, machine.sdk.logger, f"setTensorAddress: Error Code 3: {name}")
        return len(taken) <= which

    machine.sdk.IExecutionContext.set_tensor_address = refuse
    with machine.backend.load(blob, BuildConfig()) as session:
        machine.sdk.logger = session.logger  # type: ignore[attr-defined]
        name = ("image", "logits")[which]
        with pytest.raises(DeployError, match=f"cannot take the address of {name}: .*Error Code 3: {name}"):
            session.run(np.zeros((1, 3, 8, 12), np.float32))
    assert "IExecutionContext.execute_async_v3" not in called(machine.sdk)
    assert machine.gpu.held == 0


@pytest.mark.parametrize("kind", ["Runtime", "Refitter", "OnnxParserRefitter"])
def test_what_the_sdk_does_not_make_is_told_in_one_line(start: Start, model: Path, kind: str) -> None:
    machine = start("10.3.0")
    config = BuildConfig(tensorrt=TensorRTOptions(strip_weights=True), model=model)
    blob = machine.backend.build(model, config)

    def none(*arguments: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    setattr(machine.sdk, kind, none)
    words = f"makes no {kind}: .*nullptr; look at nvidia-smi, and run doctor"
    with pytest.raises(DeployError, match=words) as caught, machine.backend.load(blob, config):
        pass
    assert "\n" not in str(caught.value)
    assert machine.gpu.held == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--aux-streams", "2147483648"], "expected 0 or more, up to 2147483647"),
        (["--aux-streams", "-1"], "expected 0 or more"),
        (["--workspace", "17592186044416"], "expected 1 to 17592186044415"),
        (["--threads", "-1"], "expected 0 or more"),
    ],
)
def test_numbers_that_no_sdk_takes_are_refused(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        deploy.main(["build-engine", "demo", "-o", "out", *words])
    assert f"argument {words[0]}: got {words[1]}, {expected}" in capsys.readouterr().err


def test_the_largest_numbers_fit_what_bindings_take() -> None:
    assert values.count("2147483647") < 2**31
    assert values.mebibytes("17592186044415") < 2**64


def test_rtx_engines_without_weights_are_for_one_compute_capability(start: Start, model: Path) -> None:
    machine = start(RTX, AMPERE)
    machine.backend.build(model, BuildConfig(tensorrt=TensorRTOptions(strip_weights=True)))
    with pytest.raises(DeployError, match=r"--strip-weights with --hardware ampere_plus: .* one compute capability"):
        machine.backend.build(model, BuildConfig(tensorrt=TensorRTOptions(strip_weights=True, hardware="ampere_plus")))


def test_rtx_refuses_a_timing_cache_that_it_has_no_use_for(start: Start, tmp_path: Path) -> None:
    backend = start(RTX, AMPERE).backend
    with pytest.raises(DeployError, match="--timing-cache: TensorRT-RTX times nothing"):
        tuning(backend, tmp_path / "b", TensorRTOptions(), tmp_path / "mine", print)
    assert tuning(backend, tmp_path / "b", TensorRTOptions(), None, print).timing_cache is None


@pytest.mark.parametrize(
    ("version", "info", "options", "way_out"),
    [
        ("8.6.1", AMPERE, {"strip_weights": True}, "--no-strip-weights"),
        ("10.3.0", AMPERE, {"hardware": "same_cc"}, "--hardware exact"),
        ("10.13.3", ORIN, {"hardware": "same_cc"}, "--hardware exact"),
        ("10.13.3", TURING, {"hardware": "ampere_plus"}, "--hardware exact"),
        (RTX, AMPERE, {"version_compatible": True}, "--no-version-compatible"),
        (RTX, AMPERE, {"strip_weights": True, "hardware": "same_cc"}, "--no-strip-weights"),
    ],
)
def test_a_refused_option_of_the_bundle_has_a_way_out(
    start: Start, version: str, info: GpuInfo, options: dict[str, Any], way_out: str
) -> None:
    """A rebuild takes options from the bundle, where there is nothing to leave out."""
    with pytest.raises(DeployError, match=f"leave it out, or {way_out} where it is the bundle's"):
        start(version, info).backend.require(TensorRTOptions(**options))
    words = groups.tensorrt_given(deploy._parser().parse_args(["build-engine", "b", "-o", "c", *way_out.split()]))
    start(version, info).backend.require(replace(TensorRTOptions(**options), **words))


@pytest.mark.parametrize(
    ("said", "node"),
    [
        (
            "(Unnamed Layer* 0) [Shuffle] due to insufficient workspace. See verbose log.",
            "(Unnamed Layer* 0) [Shuffle]",
        ),
        ("(Unnamed Layer* 0) [Shuffle] + (Unnamed Layer* 1).)", "(Unnamed Layer* 0) [Shuffle] + (Unnamed Layer* 1)"),
        ("(Unnamed Layer* 0)", "(Unnamed Layer* 0)"),
        ("{ForeignNode[a (b)...c]}.)", "ForeignNode[a (b)...c]"),
        ("/conv.1/Conv. [optimizer.cpp::computeCosts::1]", "/conv.1/Conv"),
    ],
)
def test_names_of_nodes_are_told_whole(start: Start, model: Path, said: str, node: str) -> None:
    machine = start("10.3.0")
    text = f"Error Code 10: Internal Error (Could not find any implementation for node {said}"
    machine.sdk.world["build_error"] = text
    with pytest.raises(DeployError) as caught:
        machine.backend.build(model, BuildConfig())
    assert f"no implementation for node {node} fits (" in str(caught.value)
