"""What the TensorRT at hand offers, told by the names it has.

Names alone: the integer values of its enums were renumbered between releases (creation flag 1 is EXPLICIT_PRECISION in
8.5, STRONGLY_TYPED in 10.3 and PREFER_JIT_PYTHON_PLUGINS in 11), and version numbers of the RTX package count anew.
"""

from __future__ import annotations

from typing import Any

from engines.backends.tensorrt.sdk import do_without
from engines.contract import TensorRTOptions
from engines.errors import DeployError

HARDWARE = {"same_cc": "SAME_COMPUTE_CAPABILITY", "ampere_plus": "AMPERE_PLUS"}


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
