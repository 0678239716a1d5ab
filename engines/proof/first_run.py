"""An engine that was not proven where it is opened is proven there, the first time: against the bundle's golden image.

So is one that was built where nothing could run it, on another GPU that it also fits, with another release of its SDK
or another driver.  What was found is written into the manifest, so that it is done once.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import cast

from engines.bundle import GOLDEN, KERNELS, Bundle, Manifest, runtime_cache_of
from engines.contract import Backend, DeviceSession, Log
from engines.errors import GateError
from engines.proof.agreement import GATES, Agreement, Gate
from engines.proof.contexts import measure
from engines.proof.golden import Golden
from engines.proof.record import record
from engines.proof.replay import replayed
from engines.proof.stress import STEP as STRESS
from engines.segmenter import Segmenter

ENGINE_STEPS = ("engine", "tiled mask", STRESS, "replayed frame")  # of a manifest's verification: what a device proves


class Prover:
    """What `open_segmenter` asks about an engine that is not proven here, or of which is not known how many execution
    contexts serve it best.

    It returns the manifest that says so now.  Raises GateError where the engine is not what the checkpoint computes,
    and DeployError where the bundle has no proof to hold it to.
    """

    def __init__(self, log: Log) -> None:
        self.log = log

    def __call__(self, bundle: Bundle, backend: Backend, segmenter: Segmenter, kernels: bytes) -> Manifest:
        old, here = bundle.manifest, (backend.version(), backend.device())
        golden, found, files = Golden.load(bundle.read(GOLDEN)), old, dict[str, bytes]()
        said: list[tuple[str, str]] = []
        if here not in old.proven_on:
            found, agreements = self._proven(bundle, segmenter, golden, here)
            agreed = "; ".join(f"{one.step}: {one}" for one in agreements)
            said.append(("verify", f"first time on {here[1]}: {agreed}"))
            files = {KERNELS: kernels, **compiled_here(backend, segmenter)}
            files = {name: content for name, content in files.items() if name not in old.files}  # may be read now
            digests = {name: sha256(content).hexdigest() for name, content in files.items()}
            found = replace(found, files={**old.files, **digests})
        if found.contexts_on(*here) is None:
            contexts = measure(segmenter, golden.image)
            if contexts.settled:
                said.append(("contexts", str(contexts)))
                found = found.with_contexts(*here, contexts.to_json())
            else:
                self.log("contexts", f"{contexts}; not recorded: measured again at the next run")
        if not said:
            return found
        reason = record(bundle.folder, old, found, files)
        kept = "recorded in the bundle" if reason is None else f"not recorded ({reason}): done again until it is"
        for step, text in said:
            self.log(step, f"{text}; {kept}")
        return found

    def _proven(
        self, bundle: Bundle, segmenter: Segmenter, golden: Golden, here: tuple[str, str]
    ) -> tuple[Manifest, list[Agreement]]:
        manifest = bundle.manifest
        try:
            agreements = proof(golden, segmenter, gate_of(bundle), manifest.precision)
        except GateError as error:
            raise GateError(
                f"bundle {bundle.folder}: not verified before with {here[0]} on {here[1]}, and not what the checkpoint "
                f"computes: {error}; build it here: deploy.py build-engine {bundle.folder} -o NEW"
            ) from error
        kept = [step for step in manifest.verification if step["step"] not in ENGINE_STEPS]
        verification = (*kept, *(one.to_json() for one in agreements))
        return replace(manifest, verification=verification, proven=(*manifest.proven_on, here)), agreements


def prover(log: Log) -> Prover:
    """log: told (``verify``, how well it agrees) and (``contexts``, how many, and why)."""
    return Prover(log)


def proof(golden: Golden, segmenter: Segmenter, gate: Gate, precision: str) -> list[Agreement]:
    """What an engine has to show on the device.  Raises GateError."""
    return [*golden.verify(segmenter, gate, precision), *replayed(golden.image, segmenter)]


def compiled_here(backend: Backend, segmenter: Segmenter) -> dict[str, bytes]:
    """By its name in a bundle, what the SDK compiled while an engine on a GPU was proven."""
    found = cast(DeviceSession, segmenter.device.session).runtime_cache
    return {runtime_cache_of(backend.version(), backend.device()): found} if found else {}


def gate_of(bundle: Bundle) -> Gate:
    """The one that the bundle was built with."""
    return Gate.from_json(bundle.report().get("gate")) or GATES[bundle.manifest.precision]
