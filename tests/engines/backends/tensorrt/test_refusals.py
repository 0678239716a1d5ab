"""Builds that TensorRT or the adapter refuses: which node, option or memory it was, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.backends.tensorrt.build import MIB
from engines.contract import BuildConfig
from engines.errors import DeployError
from tests.engines.backends.tensorrt.api.fakes import VERSIONS, called
from tests.engines.backends.tensorrt.api.machine import OLD, tuned, write_graph
from tests.engines.conftest import Start


@pytest.mark.parametrize(
    ("version", "options", "flag"),
    [
        (OLD, {"strip_weights": True}, "--strip-weights"),
        (OLD, {"hardware": "same_cc"}, "--hardware same_cc"),
        ("10.3.0", {"hardware": "same_cc"}, "--hardware same_cc"),
    ],
)
def test_what_a_release_lacks_is_refused_before_any_work(
    start: Start, model: Path, version: str, options: dict[str, object], flag: str
) -> None:
    machine = start(version)
    with pytest.raises(DeployError, match=rf"{flag}: TensorRT {version} has no such thing; leave it out"):
        machine.backend.build(model, tuned(**options))
    assert not called(machine.sdk)


def test_a_graph_with_a_number_of_windows_written_into_it_is_refused(start: Start, tmp_path: Path) -> None:
    machine = start("10.3.0")
    with pytest.raises(DeployError, match="batch: "):
        machine.backend.build(write_graph(tmp_path / "m.onnx", fixed=True), BuildConfig(batch=2))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_failed_parse_names_the_node(start: Start, tmp_path: Path, version: str) -> None:
    error = {"desc": "no importer\nfor this", "node": 7, "name": "/head/mystery", "operator": "Mystery"}
    machine, named = start(version), "node number 7" if version == OLD else "Mystery node /head/mystery"
    wanted = rf"^TensorRT {version}: cannot take m\.onnx: {named}: no importer for this; replace this operator"
    with pytest.raises(DeployError, match=wanted) as caught:
        machine.backend.build(write_graph(tmp_path / "m.onnx", error=error), BuildConfig())
    assert "\n" not in str(caught.value)
    assert "Builder.build_serialized_network" not in called(machine.sdk)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "[optimizer.cpp::computeCosts::2011] Error Code 10: Internal Error (Could not find any implementation for "
            "node {ForeignNode[onnx::Gather_72...ScatterND_170]}.)",
            r"no implementation for node ForeignNode\[onnx::Gather_72...ScatterND_170\] fits \(workspace limit 64 MiB\)"
            "; that is usually too little memory, .*--workspace",
        ),
        (
            "Error Code 10: Internal Error (Could not find any implementation for node ArgMax_260.)",
            "node ArgMax_260 fits .*too little memory",
        ),
        (
            "Error Code 10: Internal Error (Could not find any implementation for node conv + act due to insufficient "
            "workspace. See verbose log for requested sizes.)",
            r"no implementation for node conv \+ act fits",
        ),
        (
            "10: [optimizer.cpp::computeCosts::3728] Error Code 10: Could not find any implementation for node "
            "blocks.0.",
            r"no implementation for node blocks\.0 fits",
        ),
        (
            "Error Code 2: OutOfMemory (no further information)",
            r"out of memory while building \(workspace limit 64 MiB\): .*smaller --tile or --batch",
        ),
        ("Error Code 1: Cuda Runtime (out of memory)", "out of memory while building"),
        (
            "IBuilder::buildSerializedNetwork: Error Code 9: API Usage Error (Target GPU SM 87 is not supported by "
            "this TensorRT release.)",
            "has no kernels for this GPU .*SM 87.*JetPack",
        ),
        ("Error Code 1: Internal Error (Unsupported SM: 0x601)", "has no kernels for this GPU"),
        ("Error Code 4: something\nnew", "cannot build: Error Code 4: something new; try another --precision"),
    ],
)
def test_a_failed_build_is_explained(start: Start, model: Path, said: str, words: str) -> None:
    machine = start("10.3.0")
    machine.sdk.world["build_error"] = said
    with pytest.raises(DeployError, match=words) as caught:
        machine.backend.build(model, tuned(workspace=64 * MIB))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("CUDA initialization failure with error: 35", "does not start: CUDA .* with error: 35; look at nvidia-smi"),
        ("Error Code 1: Internal Error (Unsupported SM: 0x807)", "has no kernels for this GPU .*JetPack"),
    ],
)
def test_a_builder_that_does_not_start_is_explained(start: Start, model: Path, said: str, words: str) -> None:
    machine = start("10.3.0")
    machine.sdk.world["start_error"] = said
    with pytest.raises(DeployError, match=words):
        machine.backend.build(model, BuildConfig())
