"""An engine file: a header that can be judged, then TensorRT's plan.

Deserialising a plan runs code from it, and one of another version or GPU ends in messages that help nobody.  So what is
known of a plan stands before it, and is checked first.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from engines.backends.tensorrt.sdk import sm_of
from engines.contract import TensorRTOptions
from engines.errors import DeployError
from engines.gpu.info import Fingerprint
from engines.records import read_record

MAGIC = b"edgeseg tensorrt engine 1\n"
_LENGTH = 8  # bytes of the header's length, little endian
_DIGEST = 32  # bytes of the header's sha256, which follow its length
_LATER = {8: (8, 9, 10), 9: (9, 10), 10: (10, 11)}  # majors that load a version-compatible engine of this one


@dataclass(frozen=True)
class Header:
    """What an engine was built with.

    sdk: name and version.  device: of the GPU, "" where there was none.  targets: compute capabilities that
    it was compiled for ahead of time.  model_sha256: of the graph, which an engine without weights takes them from.
    """

    sdk: str
    device: str
    options: TensorRTOptions
    targets: tuple[str, ...]
    model_sha256: str
    plan_sha256: str
    plan_bytes: int


def pack(header: Header, plan: bytes) -> bytes:
    body = json.dumps(asdict(header), sort_keys=True).encode()
    return MAGIC + len(body).to_bytes(_LENGTH, "little") + hashlib.sha256(body).digest() + body + plan


def digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def unpack(blob: bytes) -> tuple[Header, memoryview]:
    """The header and the plan.  Raises DeployError unless every byte is as it was built."""
    if not blob.startswith(MAGIC):
        raise DeployError("engine: got a file of another kind, expected one that build-engine wrote; build it again")
    sealed = len(MAGIC) + _LENGTH
    start = sealed + _DIGEST
    end = start + int.from_bytes(blob[len(MAGIC) : sealed], "little")
    if hashlib.sha256(blob[start:end]).digest() != blob[sealed:start]:
        raise DeployError("engine: its header has changed since it was built; copy or build it again")
    try:
        body: Any = json.loads(blob[start:end])
    except (ValueError, RecursionError) as error:
        raise DeployError(f"engine: its header is of another edgeseg ({error!r}); build it again") from error
    header = read_record(Header, body, "engine's header")
    plan = memoryview(blob)[end:]
    if len(plan) != header.plan_bytes:
        raise DeployError(
            f"engine: got {len(plan)} bytes of plan, expected {header.plan_bytes}; copy or build it again"
        )
    if digest(plan) != header.plan_sha256:
        raise DeployError("engine: its plan has changed since it was built; copy or build it again")
    return header, plan


def refused_sdk(built: str, here: str, options: TensorRTOptions) -> str | None:
    """None when an engine made with `built` loads in `here`, otherwise why not.  Both are name and version."""
    if built == here:
        return None
    old, new = _version(built), _version(here)
    upward = old is not None and new is not None and old[0] == new[0] and old[1] <= new[1]
    if options.version_compatible and upward and old is not None and new is not None:
        if new[1][0] in _LATER.get(old[1][0], (old[1][0],)):
            return None
        return f"built with {built!r} for later versions, which reach {max(_LATER[old[1][0]])}; but this is {here!r}"
    return f"built with {built!r}, but this is {here!r}"


def refused_device(built: str, here: str, options: TensorRTOptions, ahead: bool) -> str | None:
    """None when an engine built on `built` runs on `here`, otherwise why not.  Both as `Backend.device` gives them.

    ahead: engines belong to a compute capability, not to a model of GPU.
    """
    old, new = Fingerprint.parse(built), Fingerprint.parse(here)
    if old is None or new is None:
        return None if built == here else f"built on {built!r}, but this is {here!r}"
    if options.hardware == "ampere_plus":
        fits = min(old.sm, new.sm) >= (8, 0)
    elif options.hardware == "same_cc" or ahead:
        fits = old.sm == new.sm
    else:  # NVIDIA's support matrix: "Otherwise, serialized engines are not portable across devices."
        fits = old.same_model(new)
    if not fits:
        return f"built on {built!r}, but this is {here!r}"
    return refused_driver(old, new)


def refused_driver(old: Fingerprint, new: Fingerprint) -> str | None:
    """A newer driver loads what an older one did: NVIDIA's CUDA Compatibility guide guarantees that applications, and
    the kernels in them, run on every later driver.  The other way holds within one major version alone and not for
    everything, and TensorRT lists an old driver among the reasons of an invalid engine; so it is refused.
    """
    if new.driver >= old.driver:
        return None
    return (
        f"built with a driver for CUDA {old.driver[0]}.{old.driver[1]}, but the driver here is for "
        f"{new.driver[0]}.{new.driver[1]}: a newer driver may load it, an older one may not"
    )


def refuses(header: Header, sdk: str, device: str, ahead: bool) -> str | None:
    """None when the engine may be loaded with `sdk` on `device`, otherwise why not."""
    reason = refused_sdk(header.sdk, sdk, header.options)
    if reason is None and not header.targets:
        reason = refused_device(header.device, device, header.options, ahead)
    elif reason is None:
        old, new = Fingerprint.parse(header.device), Fingerprint.parse(device)
        if new is None or new.sm not in map(sm_of, header.targets):
            return f"compiled for {', '.join(header.targets)}, but this is {device!r}"
        reason = None if old is None else refused_driver(old, new)
    return reason


def _version(sdk: str) -> tuple[str, tuple[int, ...]] | None:
    """``tensorrt 10.3.0`` -> (``tensorrt``, (10, 3, 0))."""
    name, _, version = sdk.partition(" ")
    parts = re.match(r"\d+(?:\.\d+)*", version)
    return None if parts is None else (name, tuple(map(int, parts.group().split("."))))
