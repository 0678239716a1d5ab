"""An engine that was not proven where it is opened is proven there, the first time: against the bundle's golden image.

So is one that was built where nothing could run it, on another GPU that it also fits, with another release of its SDK
or another driver.  What was found is written into the manifest, so that it is done once.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from engines.bundle import GOLDEN, KERNELS, MANIFEST, Bundle, Manifest, open_bundle, sealed
from engines.contract import Backend, Log
from engines.errors import DeployError, GateError
from engines.proof.agreement import GATES, Agreement, Gate
from engines.proof.golden import Golden
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
        new = {} if KERNELS in manifest.files else {KERNELS: kernels}
        digests = {name: sha256(content).hexdigest() for name, content in new.items()}
        found = replace(found, files={**manifest.files, **digests})
        reason = _record(bundle.folder, manifest, found, new)
        kept_where = "recorded in the bundle" if reason is None else f"not recorded ({reason}): done again each time"
        log("verify", f"first time on {here[1]}: {'; '.join(f'{one.step}: {one}' for one in agreements)}; {kept_where}")
        return found

    return prove


def proof(golden: Golden, segmenter: Segmenter, gate: Gate, precision: str) -> list[Agreement]:
    """What an engine has to show on the device.  Raises GateError."""
    return [*golden.verify(segmenter, gate, precision), *replayed(golden.image, segmenter)]


def gate_of(bundle: Bundle) -> Gate:
    """The one that the bundle was built with."""
    return Gate.from_json(bundle.report().get("gate")) or GATES[bundle.manifest.precision]


def _record(folder: Path, old: Manifest, new: Manifest, files: Mapping[str, bytes]) -> str | None:
    """Put `new` in the place of `old`, after the `files` that it names and `old` did not.  None, or why it is not done.

    Through a handle of the folder: a bundle that was replaced meanwhile is another folder, and is left alone.
    """
    handle = -1
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        if open_bundle(folder).manifest != old or not os.path.samestat(os.fstat(handle), folder.stat()):
            return "the bundle was replaced meanwhile"
        for name, content in {**files, MANIFEST: sealed(new).encode()}.items():
            _put(handle, name, content)
    except OSError as error:
        return str(error.strerror)
    except DeployError as error:
        return str(error)
    finally:
        if handle >= 0:
            os.close(handle)
    return None


def _put(folder: int, name: str, content: bytes) -> None:
    temporary = f".edgeseg-{secrets.token_hex(8)}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with suppress(OSError):  # after the replacement it is gone
            os.unlink(temporary, dir_fd=folder)
