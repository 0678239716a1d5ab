"""What an engine's layers are and take, as its inspector and its profiler say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.backends.tensorrt.profile import precision
from engines.contract import BuildConfig, executed
from engines.errors import DeployError
from tests.engines.backends.tensorrt.api.fakes import VERSIONS
from tests.engines.backends.tensorrt.api.machine import WINDOW
from tests.engines.conftest import Start


def _tensor(text: str) -> dict[str, Any]:
    return {"Name": "t", "Format/Datatype": text}


def _layer(name: str, kind: str, taken: str, made: str) -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "Inputs": [_tensor(taken)], "Outputs": [_tensor(made)]}


@pytest.mark.parametrize("version", VERSIONS)
def test_layers_join_what_they_are_with_what_they_took(start: Start, model: Path, version: str) -> None:
    machine = start(version)
    blob = machine.backend.build(model, BuildConfig(batch=2))
    machine.sdk.log.clear()
    machine.sdk.world["described"] = [
        _layer("conv", "CaskConvolution", "Int8", "Half"), _layer("norm", "kgen", "Half", "Int8"),
        _layer("never timed", "NoOp", "Half", "Half"), _layer("product", "gemm", "Half", "Float"),
        _layer("head", "kgen", "Float", "Half"),
    ]  # fmt: skip
    machine.sdk.world["times"] = {"conv": 0.2, "norm": 0.1, "product": 0.05, "head": 0.6, "copy": 0.05}  # milliseconds
    layers = machine.backend.layers(blob, BuildConfig(), WINDOW, runs=3)
    assert [(layer.name, layer.type, layer.precision) for layer in layers] == [
        ("conv", "CaskConvolution", "int8"), ("norm", "kgen", "fp16"), ("product", "gemm", "fp16"),
        ("head", "kgen", "fp32"), ("copy", "?", "?"),  # timed, and not described
    ]  # fmt: skip
    assert [layer.share for layer in layers] == pytest.approx([0.2, 0.1, 0.05, 0.6, 0.05])
    assert executed(layers) == pytest.approx({"fp32": 0.6, "int8": 0.2, "fp16": 0.15, "?": 0.05})
    watched = ("IExecutionContext.execute_async_v3", "IExecutionContext.profiler")
    run, profiler = watched
    assert [name for name, _ in machine.sdk.log if name in watched] == [run, profiler, run, run, run]  # the first warms
    assert machine.gpu.held == 0


def test_an_engine_without_an_account_of_its_layers_says_so(start: Start, model: Path) -> None:
    machine = start("10.3.0")
    blob = machine.backend.build(model, BuildConfig())
    machine.sdk.world["described"] = ["conv", "norm"]
    with pytest.raises(DeployError, match="built without an account of its layers"):
        machine.backend.layers(blob, BuildConfig(), WINDOW)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Row major linear FP32 format (kLINEAR)", "fp32"),
        ("Int32", "int32"),
        ("nothing known", "?"),
    ],
)
def test_precision_is_read_from_the_words_of_every_release(text: str, wanted: str) -> None:
    assert precision({"Inputs": [_tensor(text)]}) == wanted
    assert precision({"Inputs": [{"Name": "t", "DataType": text}]}) == wanted
    assert precision({"Inputs": [], "Outputs": [_tensor(text)]}) == wanted


def test_weights_count_as_what_a_layer_takes() -> None:
    half_weights = {"Inputs": [_tensor("Float")], "Weights": {"Type": "Half", "Count": 9}}
    assert precision(half_weights) == "fp16"
    assert precision({**half_weights, "Weights": {"Type": "Half", "Count": 0}}) == "fp32"
