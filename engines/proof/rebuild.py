"""The last steps of every build, which need no torch: compile, verify on this device, seal the bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engines.backends import choose_backend
from engines.backends.onnx_bytes import weights_of
from engines.backends.tensorrt.backend import TensorRTFamily
from engines.backends.tensorrt.timing_cache import default_path
from engines.bundle import (
    ENGINE,
    FILES,
    GOLDEN,
    KERNELS,
    MODEL,
    OPTIONAL,
    REPORT,
    RUNTIME_CACHE,
    TAIL,
    WEIGHTS,
    Manifest,
    open_bundle,
    seal,
    writing,
)
from engines.contract import Backend, BuildConfig, Log, TensorRTOptions, executed
from engines.errors import DeployError
from engines.files import file_sha256
from engines.proof.agreement import Agreement, Gate
from engines.proof.batch_gate import STEP, compare_batch, reported, require_neutral
from engines.proof.first_run import ENGINE_STEPS, compiled_here, gate_of, proof
from engines.proof.golden import Golden, windows_of
from engines.segmenter import Segmenter, open_on_device
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from engines.tiling.tail import Tail


def compile_engine(
    folder: Path, backend: Backend, config: BuildConfig, golden: Golden, spec: ModelSpec, tiling: Tiling, gate: Gate,
    log: Log, tail: Tail | None,
) -> list[Agreement]:  # fmt: skip
    """Compile `folder`/model.onnx into `folder`/engine.bin and verify it, with its tail if it has one.

    Raises DeployError or GateError.
    """
    if backend.only_builds() and config.batch > 1:
        raise DeployError(
            f"--batch {config.batch}: several windows at once are compared with single ones on the GPU, and there is "
            "none here; build with --batch 1, or where the engine will run"
        )
    weights_of(folder / MODEL)  # before an SDK reads files that are not the bundle's own
    unproven = backend.only_builds()
    # Before what takes minutes: this fails in a second.
    kernels = _kernels(folder, log) if backend.on_gpu and not unproven else None
    config = replace(config, model=folder / MODEL, host_code=True)  # what it brings was put into it here, a moment ago
    begin = time.perf_counter()
    blob = backend.build(folder / MODEL, config)
    (folder / ENGINE).write_bytes(blob)
    log("compile", f"{config.precision}, {len(blob) / 1e6:.1f} MB in {time.perf_counter() - begin:.1f} s")

    if unproven:
        log("engine", f"UNVERIFIED: {unproven}; its first run on a GPU verifies it, or refuses")
        return []

    def opened(engine: bytes, how: BuildConfig) -> AbstractContextManager[Segmenter]:
        return open_on_device(backend, engine, config=how, spec=spec, tiling=tiling, kernels=kernels, tail=tail)

    batch = compare_batch(opened, backend, model=folder / MODEL, blob=blob, config=config, golden=golden, log=log)
    with opened(blob, config) as segmenter:
        agreements = proof(golden, segmenter, gate, config.precision)
        for name, content in compiled_here(backend, segmenter).items() if backend.on_gpu else ():
            (folder / name).write_bytes(content)
    for agreement in agreements:
        log(agreement.step, str(agreement))
    if config.precision != "fp32":
        window = windows_of(golden.image, spec, tiling)[0]
        shares = executed(backend.layers(blob, config, window, runs=1))
        text = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        remark = backend.remark(config.precision)
        log("executed", f"{text} of the layer time{f'; {remark}' if remark else ''}")
    return [*batch, *agreements]


def _kernels(folder: Path, log: Log) -> bytes:
    """Gather and stitch for the GPU here, in the bundle, so that what only runs it needs no compiler."""
    from engines.gpu.compile import compile_kernels
    from engines.gpu.context import gpu_info

    major, minor = gpu_info().sm
    cubin = compile_kernels((major, minor))
    (folder / KERNELS).write_bytes(cubin)
    log("kernels", f"gather and stitch for sm_{major}{minor}, {len(cubin) / 1e3:.0f} kB")
    return cubin


def tuning(backend: Backend, output: Path, given: TensorRTOptions, timing_cache: Path | None, log: Log) -> BuildConfig:
    """What TensorRT's builder needs to know for the bundle `output`.  Raises DeployError where it cannot be heeded."""
    if not isinstance(backend, TensorRTFamily):
        if given != TensorRTOptions() or timing_cache is not None:
            raise DeployError(
                f"--backend {backend.name}: got options of TensorRT; leave them out, or --backend tensorrt"
            )
        return BuildConfig(log=log)
    backend.require(given)
    if backend.flavour.ahead:
        if timing_cache is not None:
            raise DeployError(
                f"--timing-cache: {backend.flavour.title} times nothing while it builds, so that there is nothing to "
                "keep; leave it out"
            )
        return BuildConfig(tensorrt=given, log=log)
    cache = timing_cache or default_path(output, backend.version(), backend.device())
    return BuildConfig(tensorrt=given, timing_cache=cache, log=log)


def finish(folder: Path, manifest: Manifest, report: dict[str, Any]) -> Manifest:
    """Write report.json and the manifest, which names the sha256 of every file."""
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    compiled = sorted(path.name for path in folder.iterdir() if RUNTIME_CACHE.fullmatch(path.name))
    present = (*FILES, *(name for name in OPTIONAL if (folder / name).exists()), *compiled)
    sealed = replace(manifest, files={name: file_sha256(folder / name) for name in present})
    seal(folder, sealed)
    return sealed


def rebuild(
    source: Path, output: Path, *, log: Log, backend_name: str = "auto", threads: int = 0,
    max_relative: float | None = None, min_labels: float | None = None, batch: int | None = None,
    tensorrt: Mapping[str, Any] = MappingProxyType({}), timing_cache: Path | None = None,
) -> Manifest:  # fmt: skip
    """Compile a bundle's own graph for this device; `output` may be the same folder.  Needs neither torch nor onnx.

    max_relative, min_labels, batch: in place of what the bundle was built with; None keeps it.  tensorrt: likewise
    TensorRTOptions by name.  timing_cache: None keeps it beside `output`.
    Raises DeployError or GateError; then nothing is written or replaced.
    """
    bundle = open_bundle(source)
    old = replace(bundle.manifest, batch=bundle.manifest.batch if batch is None else batch)
    backend, why = choose_backend(old.backend if backend_name == "auto" else backend_name, old.precision, runs=False)
    log("backend", f"{why}; {backend.version()} on {backend.device()}")
    options = replace(old.tensorrt, **tensorrt)
    heeded = options if isinstance(backend, TensorRTFamily) else TensorRTOptions(**tensorrt)
    tuned = tuning(backend, output, given=heeded, timing_cache=timing_cache, log=log)
    golden, report = Golden.load(bundle.read(GOLDEN)), bundle.report()
    require_neutral(report["history"], old.batch)
    with writing(output) as folder:
        for name in {MODEL, WEIGHTS, GOLDEN, TAIL} & set(old.files):
            bundle.copy(name, folder)
        config = replace(tuned, precision=old.precision, threads=threads, batch=old.batch)
        gate = gate_of(bundle).but(max_relative, min_labels)
        agreements = compile_engine(
            folder, backend, config=config, golden=golden, spec=old.spec, tiling=old.tiling, gate=gate, log=log,
            tail=bundle.tail(),
        )  # fmt: skip
        report["gate"] = gate.to_json()
        report["rebuilt"] = [agreement.to_json() for agreement in agreements]
        report = {**{k: v for k, v in report.items() if k != STEP}, **reported(agreements, config)}
        manifest = finish(folder, describe(replace(old, tensorrt=options), backend, agreements), report)
    return manifest


def describe(manifest: Manifest, backend: Backend, agreements: Sequence[Agreement]) -> Manifest:
    """The same bundle, compiled by `backend` here and now."""
    kept = [step for step in manifest.verification if step["step"] not in (STEP, *ENGINE_STEPS)]
    here = (backend.version(), backend.device())
    return replace(
        manifest,
        backend=backend.name,
        sdk=backend.version(),
        device=backend.device(),
        verification=(*kept, *(agreement.to_json() for agreement in agreements)),
        proven=() if backend.only_builds() else (here,),
        costs={},
        contexts={},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
