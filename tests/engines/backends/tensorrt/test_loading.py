"""Engines are loaded with the calls that each release has, run on addresses, and freed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.backends.tensorrt.engine_file import digest, pack, unpack
from engines.contract import BuildConfig
from engines.errors import DeployError, GpuLostError
from tests.engines.backends.tensorrt.api.fakes import VERSIONS, called
from tests.engines.backends.tensorrt.api.machine import TYPED, WINDOW, tuned, write_graph
from tests.engines.conftest import Start


@pytest.mark.parametrize("version", VERSIONS)
def test_loads_runs_and_frees(start: Start, tmp_path: Path, version: str) -> None:
    machine = start(version)
    blob = machine.backend.build(write_graph(tmp_path / "m.onnx"), BuildConfig(batch=2))
    machine.sdk.log.clear()
    windows = np.concatenate([WINDOW, -3 * WINDOW])
    with machine.backend.load(blob, BuildConfig(batch=2)) as session:
        assert (session.input.name, session.input.shape, session.input.dtype) == ("image", (2, 3, 8, 12), "fp32")
        assert (session.output.name, session.output.shape, session.output.dtype) == ("logits", (2, 2, 4, 6), "fp32")
        assert session.capturable
        logits = session.run(windows)
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits[:, 0], windows[:, 0, ::2, ::2])
        np.testing.assert_array_equal(logits[:, 1], 2 * windows[:, 0, ::2, ::2])
        assert machine.gpu.held > 0
        with pytest.raises(DeployError, match="engine input: got"):
            session.run(WINDOW)
    assert machine.gpu.held == 0
    assert ("IExecutionContext.execute_async_v3", (machine.gpu.stream,)) in machine.sdk.log
    assert called(machine.sdk) == {
        "Runtime", "Runtime.deserialize_cuda_engine", "ICudaEngine.get_tensor_name", "ICudaEngine.get_tensor_dtype",
        "ICudaEngine.get_tensor_shape", "ICudaEngine.get_tensor_mode", "ICudaEngine.create_execution_context",
        "IExecutionContext.set_tensor_address", "IExecutionContext.execute_async_v3",
    }  # fmt: skip


def _with_outputs(blob: bytes, outputs: list[tuple[str, str, list[int]]]) -> bytes:
    """The engine with other outputs: name, type, shape."""
    header, plan = unpack(blob)
    body = json.loads(bytes(plan))
    body["io"] = [body["io"][0], *outputs]
    changed = json.dumps(body).encode()
    return pack(replace(header, plan_sha256=digest(changed), plan_bytes=len(changed)), changed)


@pytest.mark.parametrize("version", VERSIONS)
def test_several_outputs_are_one_flat_array_in_the_order_of_their_names(
    start: Start, model: Path, version: str
) -> None:
    machine = start(version)
    outputs = [("tail_1", "HALF", [1, 5, 40]), ("tail_0", "HALF", [1, 7, 3]), ("tail_2", "HALF", [1, 2])]
    blob = _with_outputs(machine.backend.build(model, BuildConfig()), outputs)
    with machine.backend.load(blob, BuildConfig()) as session:
        assert (session.output.shape, session.output.dtype) == ((128 + 256 + 128,), "fp16")
        flat = session.run(np.full_like(WINDOW, 0.5))
    assert (flat[:21] == 1.0).all()  # tail_0, the second that the engine lists
    assert (flat[128:328] == 0.5).all()
    assert (flat[384:386] == 1.5).all()
    assert machine.gpu.held == 0


@pytest.mark.parametrize("kinds", [("HALF", "FLOAT"), ("BF16", "BF16")])
def test_outputs_of_types_that_no_tail_takes_are_refused(start: Start, model: Path, kinds: tuple[str, str]) -> None:
    machine = start(TYPED[0])
    outputs = [(f"tail_{index}", kind, [1, 4]) for index, kind in enumerate(kinds)]
    blob = _with_outputs(machine.backend.build(model, BuildConfig()), outputs)
    with pytest.raises(DeployError, match="expected one input, and outputs of one type"):
        machine.backend.load(blob, BuildConfig()).__enter__()
    assert machine.gpu.held == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_runs_by_name_on_addresses(start: Start, model: Path, version: str) -> None:
    """The whole conversation, from the plan to the second run: no binding indices, no default stream."""
    machine = start(version)
    blob = machine.backend.build(model, BuildConfig())
    machine.sdk.log.clear()
    with machine.backend.load(blob, BuildConfig()) as session:
        blocks = [(machine.gpu.allocate(WINDOW.nbytes), machine.gpu.allocate(4 * 2 * 4 * 6)) for _ in range(2)]
        for source, target in blocks:
            machine.gpu.upload(source.address, WINDOW)
            session.enqueue(source.address, target.address, 0x300)
    calls = [call for call in machine.sdk.log if not call[0].startswith("ICudaEngine.get_tensor")]
    runs = [
        [
            ("IExecutionContext.set_tensor_address", ("image", source.address)),
            ("IExecutionContext.set_tensor_address", ("logits", target.address)),
            ("IExecutionContext.execute_async_v3", (0x300,)),
        ]
        for source, target in blocks
    ]
    assert calls[0][0] == "Runtime"
    assert calls[1:] == [
        ("Runtime.deserialize_cuda_engine", (unpack(blob)[1],)),
        ("ICudaEngine.create_execution_context", ()),
        *runs[0],
        *runs[1],
    ]


def test_engines_for_other_versions_may_bring_their_own_runtime(start: Start, model: Path) -> None:
    """TensorRT must be told before it sees the plan, and is told when the user says so, not when the file does."""
    for options in ({"version_compatible": True}, {}):
        machine = start("11.4.0.106")
        blob = machine.backend.build(model, tuned(**options))
        machine.sdk.log.clear()
        if options:
            with pytest.raises(DeployError, match="--allow-host-code"), machine.backend.load(blob, BuildConfig()):
                pass
            with pytest.raises(DeployError, match="--allow-host-code"):
                machine.backend.layers(blob, BuildConfig(), WINDOW)
            assert not called(machine.sdk), "the SDK was touched"
        with machine.backend.load(blob, BuildConfig(host_code=True)):
            pass
        allowed = [("Runtime.engine_host_code_allowed", (True,))] if options else []
        names = [name for name, _ in machine.sdk.log]
        assert machine.sdk.log[1 : names.index("Runtime.deserialize_cuda_engine")] == allowed


@pytest.mark.parametrize("version", TYPED)
def test_weights_come_from_the_bundle(start: Start, model: Path, version: str) -> None:
    machine, config = start(version), tuned(strip_weights=True)
    blob = machine.backend.build(model, config)
    assert machine.sdk.world["flags"] == {"STRIP_PLAN", "REFIT_IDENTICAL"}
    machine.sdk.log.clear()
    with machine.backend.load(blob, replace(config, model=model)) as session:
        assert session.run(WINDOW).shape == (1, 2, 4, 6)
    names = [name for name, _ in machine.sdk.log if not name.startswith("ICudaEngine.get_tensor")]
    assert names[:7] == [
        "Runtime", "Runtime.deserialize_cuda_engine", "Refitter", "OnnxParserRefitter",
        "OnnxParserRefitter.refit_from_bytes", "Refitter.refit_cuda_engine", "ICudaEngine.create_execution_context",
    ]  # fmt: skip
    assert ("OnnxParserRefitter.refit_from_bytes", (model.read_bytes(), str(model))) in machine.sdk.log
    for given, words in (
        (config, "no weights of its own, and no graph"),
        (replace(config, model=write_graph(model.parent / "other.onnx", "fp16")), "another other.onnx"),
        (replace(config, model=model.parent / "missing.onnx"), "missing.onnx"),
    ):
        with pytest.raises(DeployError, match=words), machine.backend.load(blob, given):
            pass


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ({"load_error": "Error Code 1: Serialization (magic tag)"}, "cannot go on loading the engine: .*magic tag"),
        ({"load_error": "Error Code 2: OutOfMemory (Requested size was 9 bytes.)"}, "no GPU memory left while loading"),
        (
            {"context_error": "Error Code 2: OutOfMemory (requested 1 GB)"},
            "no GPU memory left while making an execution",
        ),
    ],
)
def test_what_the_runtime_refuses_is_explained(start: Start, model: Path, failure: dict[str, str], words: str) -> None:
    machine = start("11.4.0.106")
    blob = machine.backend.build(model, BuildConfig())
    machine.sdk.world |= failure
    with pytest.raises(DeployError, match=words), machine.backend.load(blob, BuildConfig()):
        pass
    assert machine.gpu.held == 0


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_fails_is_an_error_and_a_lost_gpu_is_told_as_such(start: Start, model: Path, lost: bool) -> None:
    machine = start("11.4.0.106")
    blob = machine.backend.build(model, BuildConfig())
    words = "GPU: lost" if lost else r"cannot run the engine: Error Code 1: Cask \(illegal memory access\)"
    with machine.backend.load(blob, BuildConfig()) as session:
        machine.sdk.world["run_error"] = "Error Code 1: Cask (illegal memory access)"
        machine.gpu.lost = lost
        with pytest.raises(DeployError, match=words) as caught:
            session.run(WINDOW)
    assert isinstance(caught.value, GpuLostError) == lost
    assert machine.gpu.held == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_second_context_is_of_the_same_engine_with_memory_of_its_own(start: Start, model: Path, version: str) -> None:
    """One plan, two contexts; each has its own addresses, and the engine goes last, whoever forgets to close them."""
    machine = start(version)
    blob = machine.backend.build(model, BuildConfig())
    machine.sdk.log.clear()
    with machine.backend.load(blob, BuildConfig()) as session:
        beside, third = session.another(), session.another().another()
        assert (beside.input, beside.output, beside.capturable) == (session.input, session.output, session.capturable)
        assert (beside.run(WINDOW) == session.run(WINDOW)).all()
        third.run(WINDOW)
        contexts = {id(each.context) for each in (session, beside, third)}
        assert len(contexts) == 3
        beside.close()
        assert beside.context is None
        assert (session.run(WINDOW) == third.run(WINDOW)).all()
    assert third.context is None
    assert sum(name == "ICudaEngine.create_execution_context" for name, _ in machine.sdk.log) == 4
    assert machine.gpu.held == 0


def test_a_second_context_without_memory_is_refused_and_the_first_goes_on(start: Start, model: Path) -> None:
    machine = start(TYPED[0])
    blob = machine.backend.build(model, BuildConfig())
    with machine.backend.load(blob, BuildConfig()) as session:
        machine.sdk.world["context_error"] = "[resizingAllocator.cpp] out of memory: requested 123456 bytes"
        with pytest.raises(DeployError, match="no GPU memory left while making one more execution context"):
            session.another()
        assert session.run(WINDOW).any()
    assert machine.gpu.held == 0
