"""The bundle: a folder that holds an engine and everything that is needed to run it, to trust it and to rebuild it.

manifest.json   what this is, how it was verified, and the sha256 of every other file
engine.bin      the compiled engine, tied to one device and SDK version
model.onnx      the graph it was compiled from: enough to rebuild elsewhere, without torch
model.onnx.data its weights, where they do not fit into one protobuf file (2 GB)
golden.npz      windows with the checkpoint's own logits, so that a rebuild is verified too
report.json     the build log
kernels.cubin   on a GPU: gather, stitch and tail, compiled for it, so that running needs no compiler
runtime-*.cache on a GPU, of TensorRT-RTX: what it compiled when the engine was proven there, one for each such GPU
tail.npz        of an engine that ends before its logits: the weights of what makes them (engines/tiling/tail.py)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.contract import Backend, BuildConfig, TensorRTOptions
from engines.errors import DeployError
from engines.files import file_sha256, hashed_copy, replace_folder
from engines.guard.ledger import ledger, temporary_folder
from engines.records import read_record
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from engines.tiling.tail import Tail, TailShape

SCHEMA = 1
MANIFEST, ENGINE, MODEL, GOLDEN, REPORT = "manifest.json", "engine.bin", "model.onnx", "golden.npz", "report.json"
KERNELS, WEIGHTS, TAIL = "kernels.cubin", f"{MODEL}.data", "tail.npz"
MAX_BATCH = 64  # windows at once
FILES = (ENGINE, MODEL, GOLDEN, REPORT)  # of every bundle
OPTIONAL = (KERNELS, WEIGHTS, TAIL)
RUNTIME_CACHE = re.compile(r"runtime(-[0-9a-f]{12})?\.cache")  # one for each device and SDK; without one of old bundles


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself.

    sdk, device: as the backend reports them; an engine is loaded only where both are equal.
    input_shape, output_shape: (1, 3, H, W) and (1, K, h, w) of one window.
    verification: one entry per build step, each compared with the checkpoint's own logits.
    files: sha256 by file name.
    batch: windows that the engine takes at once.  tensorrt: what its builder was asked for.
    proven: (sdk, device) of each place where the engine itself was held against the checkpoint; None, of earlier
    versions, is the one of the build.
    photographs: which images were calibrated on, held out and verified on, each with the sha256 of its file.
    tail: of an engine that ends in maps, what makes logits of them, with the weights in tail.npz; None of all others.
    contexts: by SDK and device, how many execution contexts take turns there, and by which measurement
    (engines.proof.contexts.Contexts).
    costs: what its windows take on the machine where that was last measured (engines.plan.predict.Costs), or {}.
    """

    spec: ModelSpec
    tiling: Tiling
    precision: str
    backend: str
    sdk: str
    device: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    verification: tuple[Mapping[str, Any], ...]
    created: str
    files: Mapping[str, str]
    batch: int = 1
    tensorrt: TensorRTOptions = field(default_factory=TensorRTOptions)
    proven: tuple[tuple[str, str], ...] | None = None
    photographs: Mapping[str, Any] = field(default_factory=dict)
    tail: TailShape | None = None
    costs: Mapping[str, Any] = field(default_factory=dict)
    contexts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def proven_on(self) -> tuple[tuple[str, str], ...]:
        return ((self.sdk, self.device),) if self.proven is None else self.proven

    @property
    def results_from(self) -> dict[str, str]:
        """Of `files`, what results depend on: not what a device compiles, and adds once the engine was proven there."""
        compiled = {name for name in self.files if name == KERNELS or RUNTIME_CACHE.fullmatch(name)}
        return {name: sha256 for name, sha256 in self.files.items() if name not in compiled}

    def contexts_on(self, sdk: str, device: str) -> int | None:
        """How many execution contexts take turns there; None where that was not measured."""
        used = self.contexts.get(f"{sdk} on {device}", {}).get("used")
        return used if used in (None, 1, 2) else 1

    def with_contexts(self, sdk: str, device: str, contexts: Mapping[str, Any]) -> Manifest:
        return replace(self, contexts={**self.contexts, f"{sdk} on {device}": contexts})

    @property
    def names(self) -> list[str]:
        """All files that must be there, in the order in which what is wrong with them is told."""
        return sorted({*FILES, *self.files})

    def to_json(self) -> dict[str, Any]:
        body = dict(vars(self))
        body.update(spec=self.spec.to_json(), tiling=self.tiling.to_json(), files=dict(self.files), schema=SCHEMA)
        body["verification"] = [dict(step) for step in self.verification]
        body.update(tensorrt=self.tensorrt.to_json(), photographs=dict(self.photographs), costs=dict(self.costs))
        body.update(contexts={place: dict(found) for place, found in self.contexts.items()})
        body.update(tail=None if self.tail is None else asdict(self.tail))
        return body

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        body = dict(data)
        if body.pop("schema", None) != SCHEMA:
            raise DeployError(f"manifest: got schema {data.get('schema')!r}, expected {SCHEMA}; build the bundle again")
        manifest = read_record(cls, body, "manifest", "build the bundle again")
        manifest._require_one_story()
        return manifest

    def _require_one_story(self) -> None:
        """The network's shapes, the tiling and the classes must fit together, whoever wrote the manifest."""
        window, channels = (self.tiling.window_h, self.tiling.window_w), self.spec.channels
        if self.input_shape[2:] != window or len(self.output_shape) != 4 or self.output_shape[1] != channels:
            raise DeployError(
                f"manifest: got a network {self.input_shape} -> {self.output_shape} for windows {window} "
                f"and {channels} channels, expected one size; build the bundle again"
            )
        tail = self.tail
        if tail is not None and (tail.classes, tail.height, tail.width) != self.output_shape[1:]:
            raise DeployError(
                f"manifest: got a tail for {tail.classes} classes at {tail.height}x{tail.width} and logits "
                f"{self.output_shape}, expected one size; build the bundle again"
            )
        if (tail is None) != (TAIL not in self.files):
            raise DeployError(f"manifest: got a tail or {TAIL} without the other; build the bundle again")
        known = {*FILES, *OPTIONAL}
        unknown = sorted(name for name in self.files if name not in known and not RUNTIME_CACHE.fullmatch(name))
        if unknown:
            raise DeployError(f"manifest: got the file {unknown[0]!r}, which no bundle has; build the bundle again")
        if not isinstance(self.batch, int) or not 1 <= self.batch <= MAX_BATCH:
            raise DeployError(
                f"manifest: got a batch of {self.batch!r}, expected 1 to {MAX_BATCH}; build the bundle again"
            )


@dataclass(frozen=True)
class Bundle:
    """An open bundle.  A file is opened once: its hash is taken of the very bytes that are then used."""

    folder: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """The file `name`, whole.  Raises DeployError unless it is as it was built."""
        with self._readable(name):
            content = (self.folder / name).read_bytes()
        self._require(name, hashlib.sha256(content).hexdigest())
        return content

    def copy(self, name: str, folder: Path) -> None:
        """Put a copy of the file `name` into `folder`.  Raises DeployError unless it is as it was built."""
        with self._readable(name, f"copied to {folder}"):
            sha256 = hashed_copy(self.folder / name, folder / name)
        self._require(name, sha256)

    def check(self) -> None:
        """Raises DeployError unless every file is as it was built, those too that running does not need."""
        for name in self.manifest.names:
            with self._readable(name):
                sha256 = file_sha256(self.folder / name)
            self._require(name, sha256)

    def tail(self) -> Tail | None:
        """What makes logits of the engine's maps; None of an engine that gives logits.  Raises DeployError."""
        return None if self.manifest.tail is None else Tail.load(self.read(TAIL), self.manifest.tail)

    def config(self, threads: int = 0) -> BuildConfig:
        """How the engine was compiled.  threads: 0 lets the backend choose."""
        manifest = self.manifest
        return BuildConfig(manifest.precision, threads, batch=manifest.batch, tensorrt=manifest.tensorrt)

    @contextmanager
    def engine(
        self, backend: Backend, threads: int = 0, host_code: bool = False
    ) -> Iterator[tuple[bytes, BuildConfig]]:
        """The engine, and how `backend` loads it; both are good inside the block.  Raises DeployError.

        An SDK that takes weights from the graph opens files by itself, so that it gets copies in a folder that only
        this user may enter.  host_code: see BuildConfig.
        """
        config = replace(self.config(threads), host_code=host_code, runtime_cache=self._runtime_cache(backend))
        blob = self.read(ENGINE)
        if not backend.reads_graph(config):
            yield blob, config
            return
        with temporary_folder() as folder:
            for name in {MODEL, WEIGHTS} & set(self.manifest.files):
                self.copy(name, folder)
            yield blob, replace(config, model=folder / MODEL)

    def _runtime_cache(self, backend: Backend) -> bytes:
        """What its SDK compiled on a device like this one; b"" where none of it is kept."""
        kept = [name for name in self.manifest.files if RUNTIME_CACHE.fullmatch(name)]
        own = runtime_cache_of(backend.version(), backend.device()) if kept else ""
        old = "runtime.cache"  # of whatever device: the SDK refuses that of another
        name = next((name for name in (own, old) if name in kept), None)
        return b"" if name is None else self.read(name)

    def _require(self, name: str, sha256: str) -> None:
        if sha256 != self.manifest.files.get(name):
            raise DeployError(
                f"bundle {self.folder}: {name} has changed since it was built (its sha256 differs from the manifest); "
                "build the bundle again"
            )

    @contextmanager
    def _readable(self, name: str, doing: str = "read") -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise DeployError(f"bundle {self.folder}: {name} is missing; build the bundle again") from error
        except OSError as error:
            raise DeployError(f"bundle {self.folder}: {name} cannot be {doing}: {error.strerror}") from error

    def report(self) -> dict[str, Any]:
        """The build log; its ``history`` lists the passes over the graph.  Raises DeployError."""
        try:
            report = json.loads(self.read(REPORT))
            known = all(isinstance(step["rule"], str) and isinstance(step["count"], int) for step in report["history"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DeployError(f"bundle {self.folder}: {REPORT} is unreadable ({error!r}); build it again") from error
        if not known:
            raise DeployError(f"bundle {self.folder}: {REPORT} has no history of the graph; build it again")
        return dict(report)


def runtime_cache_of(sdk: str, device: str) -> str:
    """The file of what an SDK compiled when the engine was proven on a device: a bundle keeps that of each."""
    return f"runtime-{hashlib.sha256(f'{sdk} on {device}'.encode()).hexdigest()[:12]}.cache"


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest; its files are checked as they are read.  Raises DeployError; loads no engine."""
    if not is_bundle(folder):
        raise DeployError(f"bundle {folder}: got no {MANIFEST}, expected a folder made by build-engine")
    manifest = Manifest.from_json(_read_manifest(folder / MANIFEST))
    for name in manifest.names:
        if not (folder / name).is_file():
            raise DeployError(f"bundle {folder}: {name} is missing; build the bundle again")
    return Bundle(folder, manifest)


def check_target(folder: Path) -> None:
    """Refuse, before any work, a place where a finished bundle could not be put without losing something."""
    if folder.exists() and not (folder.is_dir() and (is_bundle(folder) or not any(folder.iterdir()))):
        raise DeployError(f"output {folder}: exists and is not a bundle, and is left alone; give another -o")


@contextmanager
def writing(folder: Path, check: Callable[[Path], None] = check_target) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends without an error, and vanishes otherwise.

    What was at `folder` before is replaced only then; a link stays one, and what it names is replaced.
    check: raises DeployError when that must not be replaced.
    """
    check(folder)
    target = folder.resolve()
    for what, held in (("the current directory", target == Path.cwd()), ("a mount point", os.path.ismount(target))):
        if held:
            raise DeployError(f"output {folder}: is {what}, expected a folder that can be replaced; give one inside it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise DeployError(f"output {folder}: cannot write there: {error.strerror}") from error
    try:
        with ledger.temporary(temporary):
            yield temporary
            temporary.chmod(0o755)
            replace_folder(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DeployError(f"output {folder}: {error.strerror}; free some space, or give another -o") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest last: it names the digest of every file, and its own."""
    (folder / MANIFEST).write_text(sealed(manifest))


def sealed(manifest: Manifest) -> str:
    """The text of manifest.json."""
    body = json.loads(json.dumps(manifest.to_json()))
    return json.dumps({**body, "digest": _digest(body)}, indent=1) + "\n"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise DeployError(f"bundle {path.parent}: {MANIFEST} is unreadable ({error}); build it again") from error
    if not isinstance(body, dict) or body.pop("digest", None) != _digest(body):
        raise DeployError(f"bundle {path.parent}: {MANIFEST} has changed since it was built; build the bundle again")
    return body


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
