"""What the two TensorRT backends do alike: everything but importing their package."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.backends.tensorrt import engine_file
from engines.backends.tensorrt.build import Room, build_plan
from engines.backends.tensorrt.network import model_sha256
from engines.backends.tensorrt.plan import compiled_plan, engine_plan
from engines.backends.tensorrt.profile import describe, measure
from engines.backends.tensorrt.scales import half_scales, quantises_in_fp8
from engines.backends.tensorrt.sdk import FP8_SM, Flavour, Sm, do_without, has_bf16, has_fp8, require, strongly_typed
from engines.backends.tensorrt.session import TensorRTSession
from engines.backends.tensorrt.timing_cache import TimingCache
from engines.contract import Backend, BuildConfig, DeviceSession, Float32, Layer, TensorRTOptions
from engines.errors import DeployError
from engines.gpu.info import GpuInfo
from engines.guard.ledger import ledger
from engines.machine.jetson import read_jetson
from engines.roofline.kernels import KernelPlan

NO_GPU = "no GPU"  # the device of engines that were built ahead of time, for GPUs that are elsewhere


class TensorRTFamily(Backend, ABC):
    """A backend on one package of TensorRT's shape."""

    on_gpu = True
    flavour: Flavour

    @property
    def name(self) -> str:
        return self.flavour.module

    @abstractmethod
    def sdk(self) -> Any:
        """The package, imported now.  Raises ImportError or OSError."""

    def unavailable(self) -> str | None:
        """Looks for the package first, then for a GPU, and imports the package last: it is large."""
        from engines.gpu.context import gpu_info
        from engines.gpu.context import unavailable as gpu_unavailable

        title = self.flavour.title
        if importlib.util.find_spec(self.flavour.module) is None:
            return f"the {self.flavour.module} package is not installed; {self._install()}"
        reason = gpu_unavailable()
        if reason:
            return f"no GPU to run or verify on: {reason.removeprefix('GPU: ')}" if self.flavour.ahead else reason
        try:
            sdk = self.sdk()
        except (ImportError, OSError) as error:
            return _import_failure(title, str(error), self._install())
        return self.flavour.without(sdk, gpu_info().sm)

    def only_builds(self) -> str | None:
        """Ahead of time, for GPUs that are elsewhere."""
        from engines.gpu.context import unavailable as gpu_unavailable

        if not self.flavour.ahead or importlib.util.find_spec(self.flavour.module) is None:
            return None
        reason = gpu_unavailable()
        try:
            self.sdk()
        except (ImportError, OSError):
            return None
        return reason and "no GPU here"

    def version(self) -> str:
        return f"{self.flavour.module} {self.sdk().__version__}"

    def device(self) -> str:
        info = self._gpu()
        return NO_GPU if info is None else str(info)

    def supports(self, precision: str) -> str | None:
        lacks = {"bf16": self._lacks_bf16, "fp8": self._lacks_fp8}.get(precision, lambda: None)()
        return lacks and f"{lacks}; use --precision fp16"

    def refuses_rest(self, rest: str) -> str | None:
        """The ONNX parser of releases before strong typing reads every scale as FP32, whatever its type."""
        if rest != "fp32" and not strongly_typed(self.sdk()):
            return f"{self._title()} takes scales of INT8 in FP32 alone; use --rest fp32, or TensorRT 10"
        lacks = self._lacks_bf16() if rest == "bf16" else None
        return lacks and f"{lacks}; use --rest fp16"

    def _lacks_bf16(self) -> str | None:
        if not has_bf16(self.sdk()):
            return f"{self._title()} has no BF16"
        info = self._gpu()
        if info is not None and info.sm < (8, 0):
            return f"{info.name} has no BF16 arithmetic (it came with compute capability 8.0)"
        return None

    def _lacks_fp8(self) -> str | None:
        if not has_fp8(self.sdk()) or not strongly_typed(self.sdk()):
            return f"{self._title()} has no FP8 (it came with TensorRT 10)"
        info = self._gpu()
        if info is not None and info.sm < FP8_SM:
            return (
                f"{info.name} has no FP8 tensor cores (they came with compute capability 8.9: Ada, Hopper, Blackwell)"
            )
        return None

    def remark(self, precision: str) -> str | None:
        if precision == "int8" and self.flavour.ahead:
            return (
                f"{self.flavour.title} documents INT8 as storage of weights; INT8 need not be faster here, so measure"
            )
        return None

    def refuses(self, sdk: str, device: str, config: BuildConfig) -> str | None:
        reason = engine_file.refused_sdk(sdk, self.version(), config.tensorrt)
        if device == NO_GPU and self.flavour.ahead and self._gpu() is not None:
            return reason  # its header says for which GPUs it was compiled
        return reason or engine_file.refused_device(device, self.device(), config.tensorrt, self.flavour.ahead)

    def reads_graph(self, config: BuildConfig) -> bool:
        return config.tensorrt.strip_weights

    def require(self, options: TensorRTOptions) -> None:
        """Raises DeployError naming an option that this package or this release of it lacks."""
        info = self._gpu()
        self.flavour.refuse(options, info is not None)
        require(self.sdk(), self._title(), options)
        if info is not None and options.hardware != "exact":
            _require_hardware(info, options.hardware)

    def build(self, model: Path, config: BuildConfig) -> bytes:
        """Compile the ONNX file `model`.  Raises DeployError naming the node or the option that was refused."""
        self.require(config.tensorrt)
        for rest in half_scales(model.read_bytes()):
            reason = self.refuses_rest(rest)
            if reason:
                raise DeployError(f"precision int8, the rest in {rest}: {reason}")
        sdk, info = self.sdk(), self._gpu()
        device = "" if info is None else str(info)
        targets = self.flavour.targets(sdk, None if info is None else info.sm, config.tensorrt, _least(model))
        cache = None
        if config.timing_cache is not None and not self.flavour.ahead:
            cache = TimingCache(config.timing_cache, self.version(), device, config.log)
        with ledger.doing(f"{self.version()} compiled the network"):
            plan = build_plan(
                sdk, self.flavour, model=model, config=config, room=self._room(info), targets=targets, cache=cache
            )
        header = engine_file.Header(
            self.version(), device, options=config.tensorrt, targets=targets,
            model_sha256=model_sha256(model),
            plan_sha256=engine_file.digest(plan), plan_bytes=len(plan),
        )  # fmt: skip
        return engine_file.pack(header, plan)

    @contextmanager
    def load(self, blob: bytes, config: BuildConfig) -> Iterator[DeviceSession]:
        with self._open(blob, config) as session:
            yield session

    def layers(self, blob: bytes, config: BuildConfig, window: Float32, runs: int = 5) -> list[Layer]:
        with self._open(blob, config) as session:
            return measure(self.sdk(), session, window, runs)

    def cannot_plan(self) -> str | None:
        """None where `kernel_plan` may be called, otherwise why not."""
        if not self.flavour.ahead:
            return f"{self.flavour.title} compiles on a GPU alone; build a bundle there and inspect it"
        if importlib.util.find_spec(self.flavour.module) is None:
            return f"the {self.flavour.module} package is not installed; {self._get_package()}"
        try:
            self.sdk()
        except (ImportError, OSError) as error:
            return _import_failure(self.flavour.title, str(error), self._get_package())
        return None

    def kernel_plan(self, model: Path, batch: int = 1) -> KernelPlan:
        """What the compiler makes of the ONNX file `model` for `batch` windows at once, found by compiling it: 1-3 s.

        No GPU is needed.  Raises DeployError where the package is missing or refuses the graph.
        """
        reason = self.cannot_plan()
        if reason is not None:
            raise DeployError(f"plan: {reason}")
        with ledger.doing(f"{self.version()} compiled the network"):
            return compiled_plan(self.sdk(), self.flavour, model, batch, _least(model))

    def engine_plan(self, blob: bytes, config: BuildConfig, model: Path) -> KernelPlan:
        """What the engine `blob`, built from the ONNX file `model`, launches by its own account.  Needs its GPU."""
        with self._open(blob, config) as session:
            layers, batch = describe(self.sdk(), session), session.input.shape[0]
        return engine_plan(self.sdk(), self.flavour, model=model, batch=batch, layers=layers)

    @contextmanager
    def _open(self, blob: bytes, config: BuildConfig) -> Iterator[TensorRTSession]:
        """Nothing of a plan is looked at by the SDK before its header was judged."""
        header, plan = engine_file.unpack(blob)
        reason = engine_file.refuses(header, self.version(), self.device(), self.flavour.ahead)
        if reason:
            raise DeployError(f"engine: {reason}; build the bundle again here")
        if header.options.version_compatible and not config.host_code:
            raise DeployError(
                "engine: it was built with --version-compatible and brings native code of its own, which runs when it "
                "is loaded; give --allow-host-code if you trust where it comes from, or build the bundle again here"
            )
        from engines.gpu.context import open_gpu

        with open_gpu() as gpu, ledger.doing(f"{self.version()} loaded or ran the engine"):
            session = TensorRTSession(
                self.sdk(), title=self._title(), header=header, plan=plan, model=config.model, gpu=gpu,
                runtime_cache=config.runtime_cache,
            )  # fmt: skip
            try:
                yield session
            finally:
                session.close()

    def _title(self) -> str:
        return f"{self.flavour.title} {self.sdk().__version__}"

    def _gpu(self) -> GpuInfo | None:
        """None where there is no GPU and this package can do without.  Raises DeployError."""
        from engines.gpu.context import gpu_info
        from engines.gpu.context import unavailable as gpu_unavailable

        if self.flavour.ahead and gpu_unavailable() is not None:
            return None
        info: GpuInfo = gpu_info()
        return info

    def _room(self, info: GpuInfo | None) -> Room | None:
        if info is None:
            return None
        from engines.gpu.context import open_gpu

        with open_gpu() as gpu:
            return Room(gpu.free_memory(), info.integrated)

    def _get_package(self) -> str:
        """To compile alone: of TensorRT-RTX, which is for x86-64."""
        return f"on an x86-64 machine, with a GPU or without: {self.flavour.install}"

    def _install(self) -> str:
        board = read_jetson()
        if board is None:
            return f"on a machine with an NVIDIA GPU: {self.flavour.install}"
        if self.flavour.ahead:
            return f"there is none for a {board.board}: use --backend tensorrt"
        return (  # pip's wheels are for other systems than JetPack
            "sudo apt install python3-libnvinfer, JetPack's own, and make the environment with "
            "python3 -m venv --system-site-packages, so that it is seen"
        )


def _require_hardware(info: GpuInfo, hardware: str) -> None:
    """NVIDIA's guide on hardware compatibility: AMPERE_PLUS from Ampere on, SAME_COMPUTE_CAPABILITY from Turing on, and
    neither on DRIVE OS nor on JetPack.
    """
    flag = f"--hardware {hardware}"
    if info.integrated:
        raise DeployError(
            f"{flag}: TensorRT has it for GPUs of their own, not for boards ({info.name}); {do_without(flag)}"
        )
    oldest = (7, 5) if hardware == "same_cc" else (8, 0)
    if info.sm < oldest:
        raise DeployError(
            f"{flag}: TensorRT has it from compute capability {oldest[0]}.{oldest[1]} on, {info.name} is older; "
            f"{do_without(flag)}"
        )


def _least(model: Path) -> Sm:
    """The compute capability that the graph needs."""
    return FP8_SM if quantises_in_fp8(model.read_bytes()) else (8, 0)


def _import_failure(title: str, error: str, install: str) -> str:
    """Why an installed package does not load."""
    text = " ".join(error.split())
    if "libnvdla_compiler" in text:
        return (
            f"{title} does not load: it is the build for boards with a DLA, and libnvdla_compiler.so is missing; on "
            "the board itself: sudo apt install nvidia-l4t-dla-compiler, or install the TensorRT of this JetPack"
        )
    return f"{title} does not load ({text}); {install}"
