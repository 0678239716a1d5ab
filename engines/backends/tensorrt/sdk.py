"""The differences between the packages that share this code, and what the one at hand offers, told by its names.

Names alone: the integer values of TensorRT's enums were renumbered between releases (creation flag 1 is
EXPLICIT_PRECISION in 8.5, STRONGLY_TYPED in 10.3 and PREFER_JIT_PYTHON_PLUGINS in 11), and version numbers of the RTX
package count anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engines.contract import TensorRTOptions
from engines.errors import DeployError

Sm = tuple[int, int]
FP8_SM = (8, 9)  # Ada, the first with tensor cores for it
HARDWARE = {"same_cc": "SAME_COMPUTE_CAPABILITY", "ampere_plus": "AMPERE_PLUS"}
_OFF = {
    "--version-compatible": "--no-version-compatible",
    "--hardware": "--hardware exact",
    "--strip-weights": "--no-strip-weights",
}


@dataclass(frozen=True)
class Flavour:
    """module: the package.  title: for people.  install: the command that gets it.

    ahead: kernels are compiled ahead of time for compute capabilities instead of timed on the GPU at hand.  Building
    then needs no GPU, an engine belongs to compute capabilities and not to a model of GPU, and a timing cache has
    nothing to keep.  TensorRT-RTX documents engines as never compatible between its releases.
    """

    module: str
    title: str
    install: str
    ahead: bool = False

    def targets(self, sdk: Any, sm: Sm | None, options: TensorRTOptions, least: Sm = (8, 0)) -> tuple[str, ...]:
        """Names of the compute capabilities to compile for: this GPU's, or all from Ampere on where there is none or
        `--hardware ampere_plus` asks for it.  () where the SDK builds for the GPU at hand.  least: what the graph
        needs.

        Turing is left to a GPU of its own: NVIDIA's support matrix says that including it slows all others down.
        """
        if not self.ahead:
            return ()
        known = {name: sm_of(name) for name in dir(sdk.ComputeCapability) if name[:2] == "SM" and name[2:].isdigit()}
        if sm is not None and options.hardware != "ampere_plus":
            return tuple(name for name, capability in known.items() if capability == sm)
        return tuple(sorted((name for name in known if known[name] >= least), key=sm_of))

    def without(self, sdk: Any, sm: Sm) -> str | None:
        """None where engines can be compiled for `sm`, otherwise why not."""
        if not self.ahead or self.targets(sdk, sm, TensorRTOptions()):
            return None
        offered = ", ".join(f"{a}.{b}" for a, b in map(sm_of, self.targets(sdk, None, TensorRTOptions())))
        return (
            f"{self.title} {sdk.__version__} has no kernels for compute capability {sm[0]}.{sm[1]} (it has 7.5, "
            f"{offered}); use --backend tensorrt"
        )

    def refuse(self, options: TensorRTOptions, on_gpu: bool) -> None:
        """Raises DeployError for what this package cannot do whatever its version.  on_gpu: there is one to use."""
        if self.ahead and options.strip_weights and not on_gpu:
            raise DeployError(
                f"--strip-weights: {self.title} builds refittable engines on a GPU alone; here, "
                f"{do_without('--strip-weights')}"
            )
        if self.ahead and options.strip_weights and options.hardware != "exact":
            raise DeployError(
                f"--strip-weights with --hardware {options.hardware}: {self.title} builds refittable engines for one "
                f"compute capability at a time; {do_without('--strip-weights')}, or --hardware exact"
            )
        if self.ahead and options.version_compatible:
            raise DeployError(
                f"--version-compatible: {self.title} engines run in the release that built them alone; "
                f"{do_without('--version-compatible')}"
            )


def do_without(flag: str) -> str:
    """How to do without `flag`, also where a rebuild takes it from the bundle and there is nothing to leave out."""
    off = _OFF.get(flag.split()[0])
    return "leave it out" if off is None else f"leave it out, or {off} where it is the bundle's"


def sm_of(name: str) -> Sm:
    """``SM120`` -> (12, 0)."""
    return int(name[2:-1]), int(name[-1])


def member(sdk: Any, enum: str, name: str) -> Any | None:
    """A member of an enum, None where this SDK lacks it."""
    return getattr(getattr(sdk, enum, None), name, None)


def name_of(value: Any) -> str:
    """The name of an enum's member: ``HALF`` of DataType.HALF."""
    return str(value).rsplit(".", 1)[-1]


def strongly_typed(sdk: Any) -> bool:
    """Whether networks take their types from the graph alone.  Since 11 there are no others, and no precision flags."""
    return (
        member(sdk, "NetworkDefinitionCreationFlag", "STRONGLY_TYPED") is not None
        or member(sdk, "BuilderFlag", "FP16") is None
    )


def network_flags(sdk: Any, typed: bool) -> int:
    """For `create_network`.  typed: False asks for the kind whose precision the builder's flags decide."""
    names = ("STRONGLY_TYPED",) if typed else ("EXPLICIT_BATCH",)
    flags = (member(sdk, "NetworkDefinitionCreationFlag", name) for name in names)
    return sum(1 << int(flag) for flag in flags if flag is not None)


def has_bf16(sdk: Any) -> bool:
    """BF16 came with strongly typed networks, in 9."""
    return member(sdk, "DataType", "BF16") is not None


def has_fp8(sdk: Any) -> bool:
    return member(sdk, "DataType", "FP8") is not None


def require(sdk: Any, title: str, options: TensorRTOptions) -> None:
    """Raises DeployError naming what was asked for and this SDK lacks, before any work."""
    wanted = [
        (options.level is not None, hasattr(sdk.IBuilderConfig, "builder_optimization_level"), "--opt-level"),
        (options.aux_streams is not None, hasattr(sdk.IBuilderConfig, "max_aux_streams"), "--aux-streams"),
        (options.version_compatible, member(sdk, "BuilderFlag", "VERSION_COMPATIBLE"), "--version-compatible"),
        (options.strip_weights, _can_strip(sdk), "--strip-weights"),
    ]
    if options.hardware != "exact":
        level = member(sdk, "HardwareCompatibilityLevel", HARDWARE[options.hardware])
        wanted.append((True, level, f"--hardware {options.hardware}"))
    for asked, there, flag in wanted:
        if asked and (there is None or there is False):
            raise DeployError(f"{flag}: {title} has no such thing; {do_without(flag)}, or update TensorRT")


def _can_strip(sdk: Any) -> bool:
    """Without the refitter from ONNX, an engine without weights could never be loaded."""
    return member(sdk, "BuilderFlag", "STRIP_PLAN") is not None and hasattr(sdk, "OnnxParserRefitter")
