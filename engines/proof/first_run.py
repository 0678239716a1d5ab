"""An engine that was not proven where it is opened is proven there, the first time: against the bundle's golden image.

So is one that was built where nothing could run it, on another GPU that it also fits, with another release of its SDK
or another driver.  What was found is written into the manifest, so that it is done once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import cast

from engines.bundle import GOLDEN, KERNELS, RUNTIME_CACHE, Bundle, Manifest
from engines.contract import Backend, DeviceSession, Log
from engines.errors import GateError
from engines.proof.agreement import GATES, Agreement, Gate
from engines.proof.golden import Golden
from engines.proof.record import record
from engines.proof.replay import replayed
from engines.proof.stress import STEP as STRESS
from engines.segmenter import Segmenter

ENGINE_STEPS = ("engine", "tiled mask", STRESS, "replayed frame")  # of a manifest's verification: what a device proves


def prover(log: Log) -> Callable[[Bundle, Backend, Segmenter, bytes], Manifest]:
    """What `open_segmenter` asks about an engine that is not proven here.

    It returns the manifest that says where it is now.  Raises GateError where the engine is not what the checkpoint
    computes, and DeployError where the bundle has no proof to hold it to.
    """

    def prove(bundle: Bundle, backend: Backend, segmenter: Segmenter, kernels: bytes) -> Manifest:
        manifest, here = bundle.manifest, (backend.version(), backend.device())
        golden, gate = Golden.load(bundle.read(GOLDEN)), gate_of(bundle)
        try:
            agreements = proof(golden, segmenter, gate, manifest.precision)
        except GateError as error:
            raise GateError(
                f"bundle {bundle.folder}: not verified before with {here[0]} on {here[1]}, and not what the checkpoint "
                f"computes: {error}; build it here: deploy.py build-engine {bundle.folder} -o NEW"
            ) from error
        kept = [step for step in manifest.verification if step["step"] not in ENGINE_STEPS]
        proven = (*manifest.proven_on, here)
        found = replace(manifest, verification=(*kept, *(one.to_json() for one in agreements)), proven=proven)
        new = {KERNELS: kernels, **compiled_here(segmenter)}
        new = {name: content for name, content in new.items() if name not in manifest.files}  # others may be read now
        digests = {name: sha256(content).hexdigest() for name, content in new.items()}
        found = replace(found, files={**manifest.files, **digests})
        reason = record(bundle.folder, manifest, found, new)
        kept_where = "recorded in the bundle" if reason is None else f"not recorded ({reason}): done again each time"
        log("verify", f"first time on {here[1]}: {'; '.join(f'{one.step}: {one}' for one in agreements)}; {kept_where}")
        return found

    return prove


def proof(golden: Golden, segmenter: Segmenter, gate: Gate, precision: str) -> list[Agreement]:
    """What an engine has to show on the device.  Raises GateError."""
    return [*golden.verify(segmenter, gate, precision), *replayed(golden.image, segmenter)]


def compiled_here(segmenter: Segmenter) -> dict[str, bytes]:
    """By its name in a bundle, what the SDK compiled while an engine on a GPU was proven."""
    found = cast(DeviceSession, segmenter.device.session).runtime_cache
    return {RUNTIME_CACHE: found} if found else {}


def gate_of(bundle: Bundle) -> Gate:
    """The one that the bundle was built with."""
    return Gate.from_json(bundle.report().get("gate")) or GATES[bundle.manifest.precision]
