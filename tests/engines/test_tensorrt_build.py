"""The TensorRT adapter builds on 8.6, 10.3, 10.16 and 11 with the calls that each has, and no others.

Against fakes of their API: what TensorRT makes of the calls takes a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.base import BuildConfig, TensorRTOptions
from engines.errors import DeployError
from engines.tensorrt_backend import TensorRTBackend
from engines.trt.builder import MIB, Room, workspace_limit
from tests.engines import fake_tensorrt
from tests.engines.fake_gpu import H100, ORIN, FakeGpu

VERSIONS = ("8.6.2", "10.3.0", "10.16.2", "11.4.1")
FP16 = [
    ("weight", "CONSTANT", "FLOAT", ()),
    ("half", "CAST", "HALF", ("image",)),
    ("conv", "CONVOLUTION", "HALF", ("half",)),
    ("wide", "CAST", "FLOAT", ("conv",)),
    ("norm", "NORMALIZATION", "FLOAT", ("wide", "weight")),
    ("logits", "ACTIVATION", "FLOAT", ("norm",)),
]
FP32 = [("conv", "CONVOLUTION", "FLOAT", ("image",)), ("logits", "SOFTMAX", "FLOAT", ("conv",))]
INT8 = [
    ("q", "QUANTIZE", "INT8", ("image",)),
    ("dq", "DEQUANTIZE", "FLOAT", ("q",)),
    ("conv", "CONVOLUTION", "FLOAT", ("dq",)),
    ("logits", "SOFTMAX", "FLOAT", ("conv",)),
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(H100).install(monkeypatch)


@pytest.fixture
def backend_of(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TensorRTBackend, Any]]:
    def make(version: str, **behaviour: Any) -> tuple[TensorRTBackend, Any]:
        backend, sdk = TensorRTBackend(), fake_tensorrt.make(version, **behaviour)
        monkeypatch.setattr(backend, "sdk", lambda: sdk)
        return backend, sdk

    return make


def _called(sdk: Any, what: str) -> list[Any]:
    return [arguments for name, arguments in sdk.calls if name == what]


def _build(backend: TensorRTBackend, folder: Path, layers: Any, **options: Any) -> tuple[bytes, list[tuple[str, str]]]:
    said: list[tuple[str, str]] = []
    config = BuildConfig(log=lambda step, text: said.append((step, text)))
    config = replace(config, **{k: v for k, v in options.items() if k in vars(config)})
    tuned = {k: v for k, v in options.items() if k not in vars(config)}
    config = replace(config, tensorrt=TensorRTOptions(**tuned))
    return backend.build(fake_tensorrt.graph(folder / "model.onnx", layers), config), said


@pytest.mark.parametrize(("version", "flags"), [("8.6.2", 1), ("10.3.0", 2), ("10.16.2", 2), ("11.4.1", 1)])
def test_networks_are_strongly_typed_where_they_can_be(
    backend_of: Any, tmp_path: Path, version: str, flags: int
) -> None:
    """EXPLICIT_BATCH of 8.6 is bit 0, STRONGLY_TYPED of 10 is bit 1; bit 1 of 11 would be something else altogether."""
    backend, sdk = backend_of(version)
    _, said = _build(backend, tmp_path, FP16)
    assert _called(sdk, "create_network") == [flags]
    assert ("build" in dict(said)) == (version == "8.6.2")  # which cannot be interrupted
    weak = {"FP16", "OBEY_PRECISION_CONSTRAINTS"} if version == "8.6.2" else set()
    assert set(_called(sdk, "set_flag")) == weak
    assert _called(sdk, "clear_flag") == ["TF32"]
    assert _called(sdk, "IBuilderConfig.profiling_verbosity") == ["ProfilingVerbosity.DETAILED"]
    assert len(_called(sdk, "IBuilderConfig.progress_monitor")) == (version != "8.6.2")
    assert not _called(sdk, "IBuilderConfig.builder_optimization_level")  # TensorRT's own where nothing was asked


@pytest.mark.parametrize("version", VERSIONS)
def test_every_option_reaches_the_builder(backend_of: Any, tmp_path: Path, version: str) -> None:
    backend, sdk = backend_of(version)
    _, said = _build(
        backend, tmp_path, FP32, workspace=64 * MIB, level=4, aux_streams=0, version_compatible=True,
        hardware="ampere_plus",
    )  # fmt: skip
    assert _called(sdk, "set_flag") == ["VERSION_COMPATIBLE"]
    assert _called(sdk, "set_memory_pool_limit") == [("MemoryPoolType.WORKSPACE", 64 * MIB)]
    assert _called(sdk, "IBuilderConfig.builder_optimization_level") == [4]
    assert _called(sdk, "IBuilderConfig.max_aux_streams") == [0]
    assert _called(sdk, "IBuilderConfig.hardware_compatibility_level") == ["HardwareCompatibilityLevel.AMPERE_PLUS"]
    assert ("workspace", "64 MiB, as asked") in said


@pytest.mark.parametrize(
    ("version", "options", "flag"),
    [
        ("8.6.2", {"strip_weights": True}, "--strip-weights"),
        ("8.6.2", {"hardware": "same_cc"}, "--hardware same_cc"),
        ("10.3.0", {"hardware": "same_cc"}, "--hardware same_cc"),
    ],
)
def test_what_a_release_lacks_is_refused_before_any_work(
    backend_of: Any, tmp_path: Path, version: str, options: dict[str, Any], flag: str
) -> None:
    backend, sdk = backend_of(version)
    with pytest.raises(DeployError, match=rf"{flag}: TensorRT {version} has no such thing; leave it out"):
        _build(backend, tmp_path, FP32, **options)
    assert sdk.calls == []


def test_fp32_islands_are_held_to_fp32_on_8_6(backend_of: Any, tmp_path: Path) -> None:
    """And nothing else: not the constant, not the cast that makes FP32 of FP16, not the FP16 layers."""
    backend, sdk = backend_of("8.6.2")
    _, said = _build(backend, tmp_path, FP16)
    assert [name for name, _ in _called(sdk, "set_output_type")] == ["norm", "logits"]
    assert _called(sdk, "Layer.precision") == ["DataType.FLOAT"] * 2
    assert ("types", "2 FP32 layers, FP16, OBEY_PRECISION_CONSTRAINTS") in said


def test_layers_between_q_and_dq_are_free_to_be_int8_on_8_6(backend_of: Any, tmp_path: Path) -> None:
    backend, sdk = backend_of("8.6.2")
    _build(backend, tmp_path, INT8)
    assert _called(sdk, "set_flag") == ["INT8", "OBEY_PRECISION_CONSTRAINTS"]
    assert [name for name, _ in _called(sdk, "set_output_type")] == ["logits"]


def test_fp32_graphs_take_no_flags_on_8_6(backend_of: Any, tmp_path: Path) -> None:
    backend, sdk = backend_of("8.6.2")
    _build(backend, tmp_path, FP32)
    assert _called(sdk, "set_flag") == _called(sdk, "set_output_type") == []


@pytest.mark.parametrize(("version", "there"), [("8.6.2", False), ("10.3.0", True), ("11.4.1", True)])
def test_bf16_is_offered_where_the_sdk_and_the_gpu_have_it(
    backend_of: Any, gpu: FakeGpu, version: str, there: bool
) -> None:
    backend, _ = backend_of(version)
    assert (backend.supports("bf16") is None) == there
    assert all(backend.supports(precision) is None for precision in ("fp32", "fp16", "int8"))
    gpu.info = replace(H100, name="T4", sm=(7, 5))
    assert backend.supports("bf16") is not None


@pytest.mark.parametrize("version", ["10.3.0", "11.4.1"])
def test_weights_are_stripped_to_come_back_identical(backend_of: Any, tmp_path: Path, version: str) -> None:
    backend, sdk = backend_of(version)
    _build(backend, tmp_path, FP32, strip_weights=True)
    assert _called(sdk, "set_flag") == ["STRIP_PLAN", "REFIT_IDENTICAL"]


@pytest.mark.parametrize(
    ("version", "named"),
    [("8.6.2", "node number 7"), ("10.3.0", "Mystery node head/odd"), ("11.4.1", "Mystery node head/odd")],
)
def test_a_node_that_cannot_be_parsed_is_named(backend_of: Any, tmp_path: Path, version: str, named: str) -> None:
    backend, sdk = backend_of(version, parse_error="no importer\nfor this")
    wanted = rf"^TensorRT {version}: cannot take model\.onnx: {named}: no importer for this; replace this operator"
    with pytest.raises(DeployError, match=wanted):
        _build(backend, tmp_path, FP32)
    assert not _called(sdk, "build_serialized_network")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        ("Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[norm...logits]}.)",
         r"no implementation for node ForeignNode\[norm\.\.\.logits\] fits \(workspace limit 64 MiB\); that is usually "
         r"too little memory, .*--workspace"),
        ("Error Code 10: Internal Error (Could not find any implementation for node conv + act due to insufficient "
         "workspace. See verbose log for requested sizes.)", r"no implementation for node conv \+ act fits"),
        ("10: [optimizer.cpp::computeCosts::3728] Error Code 10: Could not find any implementation for node blocks.0.",
         r"no implementation for node blocks\.0 fits"),
        ("Error Code 1: Cuda Runtime (out of memory)",
         r"out of memory while building \(workspace limit 64 MiB\): .*smaller --tile or --batch"),
        ("something\nelse", r"cannot build: something else; try another --precision"),
    ],
)  # fmt: skip
def test_a_build_that_fails_is_explained(backend_of: Any, tmp_path: Path, error: str, wanted: str) -> None:
    backend, _ = backend_of("10.3.0", no_plan=error)
    with pytest.raises(DeployError, match=wanted) as caught:
        _build(backend, tmp_path, FP32, workspace=64 * MIB)
    assert "\n" not in str(caught.value)


def test_a_builder_that_does_not_start_is_explained(backend_of: Any, tmp_path: Path) -> None:
    backend, _ = backend_of("10.3.0", no_builder=True)
    with pytest.raises(
        DeployError, match=r"does not start: CUDA initialization failure with error: 35; look at nvidia"
    ):
        _build(backend, tmp_path, FP32)


def test_workspace_leaves_a_board_with_shared_memory_usable(backend_of: Any, gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.info, gpu.free = ORIN, 4096 * MIB
    backend, sdk = backend_of("10.3.0")
    _, said = _build(backend, tmp_path, FP32)
    assert _called(sdk, "set_memory_pool_limit") == [("MemoryPoolType.WORKSPACE", 2048 * MIB)]
    assert ("workspace", "2048 MiB, half of 4096 MiB free: the CPU lives in the same memory") in said


@pytest.mark.parametrize(("free", "limit"), [(80_000, 72_000), (8_000, 6_976), (1_000, 500)])
def test_workspace_on_a_gpu_of_its_own_is_what_is_free_less_headroom(free: int, limit: int) -> None:
    assert workspace_limit(TensorRTOptions(), Room(free * MIB, False))[0] == limit * MIB


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0"])
def test_a_dla_is_answered_by_type_of_layer_and_builds_nothing(backend_of: Any, tmp_path: Path, version: str) -> None:
    backend, sdk = backend_of(version, dla_cores=2, on_dla=("CONVOLUTION", "ACTIVATION"))
    wanted = (
        r"--dla 1: 2 of 5 layers could run on the DLA \(1 of 1 CONVOLUTION, 1 of 1 ACTIVATION, 0 of 2 CAST, "
        r"0 of 1 NORMALIZATION\); a network like this does not run there as a whole"
    )
    with pytest.raises(DeployError, match=wanted):
        _build(backend, tmp_path, FP16, dla=1)
    assert not _called(sdk, "build_serialized_network")
    assert "FP16" in _called(sdk, "set_flag")  # without it TensorRT answers no for every layer


def test_a_board_without_dla_says_so(backend_of: Any, tmp_path: Path) -> None:
    backend, _ = backend_of("11.4.1")
    with pytest.raises(DeployError, match=r"--dla 0: TensorRT 11\.4\.1 sees no DLA here"):
        _build(backend, tmp_path, FP16, dla=0)
    backend, _ = backend_of("10.3.0", dla_cores=2)
    with pytest.raises(DeployError, match="got core 2, expected 0 to 1"):
        _build(backend, tmp_path, FP16, dla=2)


def test_the_timing_cache_is_kept_and_used_again(backend_of: Any, tmp_path: Path) -> None:
    backend, sdk = backend_of("10.3.0")
    cache = tmp_path / "gpu.timing-cache"
    _build(backend, tmp_path, FP32, timing_cache=cache)
    _build(backend, tmp_path, FP32, timing_cache=cache)
    assert _called(sdk, "create_timing_cache") == [b"", b"measured"]
    assert _called(sdk, "set_timing_cache") == [False, False]  # never with another GPU's measurements


@pytest.mark.parametrize("damage", ["byte", "cut", "other", "trtexec"])
def test_a_timing_cache_that_does_not_fit_is_reported_and_replaced(
    backend_of: Any, gpu: FakeGpu, tmp_path: Path, damage: str
) -> None:
    backend, sdk = backend_of("10.3.0")
    cache = tmp_path / "gpu.timing-cache"
    _build(backend, tmp_path, FP32, timing_cache=cache)
    whole = cache.read_bytes()
    changed = {"byte": whole[:-1] + b"x", "cut": whole[:-3], "other": whole, "trtexec": b"\x00\x01\xff" * 50}[damage]
    cache.write_bytes(changed)
    if damage == "other":
        gpu.info = replace(H100, name="NVIDIA H200")
    _, said = _build(backend, tmp_path, FP32, timing_cache=cache)
    assert _called(sdk, "create_timing_cache") == [b"", b""]
    assert any(step == "timing cache" and text.endswith("a new one replaces it") for step, text in said)
    assert (cache.read_bytes() == whole) == (damage != "other")


def test_a_timing_cache_that_tensorrt_refuses_is_replaced(backend_of: Any, tmp_path: Path) -> None:
    backend, sdk = backend_of("10.3.0")
    cache = tmp_path / "gpu.timing-cache"
    _build(backend, tmp_path, FP32, timing_cache=cache)
    sdk.behaviour.takes_cache = False
    _, said = _build(backend, tmp_path, FP32, timing_cache=cache)
    assert _called(sdk, "create_timing_cache") == [b"", b"measured", b""]
    assert any("TensorRT does not take it; a new one replaces it" in text for _, text in said)
