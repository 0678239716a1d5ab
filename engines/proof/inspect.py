"""`deploy.py inspect BUNDLE`: what it is, how it was verified, and whether it fits this machine."""

from __future__ import annotations

from typing import Any

from engines.backends import get_backend
from engines.bundle import GOLDEN, Bundle
from engines.contract import table
from engines.errors import DeployError
from engines.proof.contexts import Contexts
from engines.proof.golden import Golden, windows_of
from engines.records import read_record
from engines.spec import said_threshold
from engines.tiling.tail import TailShape


def inspect_bundle(bundle: Bundle) -> tuple[dict[str, Any], str]:
    """The bundle as JSON and as text.  Raises DeployError where a file is not as it was built."""
    bundle.check()
    manifest = bundle.manifest
    backend = get_backend(manifest.backend)
    problem = backend.unavailable()
    problem = problem or backend.refuses(manifest.sdk, manifest.device, bundle.config())
    sizes = {name: (bundle.folder / name).stat().st_size for name in manifest.files}
    report = bundle.report()
    history = report["history"]
    result = {
        **manifest.to_json(),
        "sizes": sizes,
        "history": history,
        "calibration": report.get("calibration"),
        "runs_here": problem is None,
        "problem": problem,
    }
    spec, tiling = manifest.spec, manifest.tiling
    classes = f"{len(spec.classes)}: {', '.join(spec.classes[:8])}{', ...' if len(spec.classes) > 8 else ''}"
    rows = [
        ("model", f"{spec.architecture} {spec.variant} from {spec.source}, sha256 {spec.source_sha256[:12]}"),
        ("classes", classes if spec.threshold is None else f"one channel, {said_threshold(spec)}"),
        ("input", f"{_shape(manifest.input_shape)} {spec.channel_order}, mean {spec.mean}, std {spec.std}"),
        ("logits", f"{_shape(manifest.output_shape)}, 1/{spec.logits_stride} of the window"),
        ("tiling", f"window {tiling.window_h}x{tiling.window_w}, stride {tiling.stride_h}x{tiling.stride_w}, "
                   f"{tiling.blend} blend, {tiling.padding} padding"
                   + (f", {'x'.join(map(str, tiling.labelled))} of it labelled" if any(tiling.margin) else "")),
        ("engine", f"{manifest.precision}, {manifest.batch} window(s) at once, {manifest.sdk} on {manifest.device}, "
                   f"built {manifest.created}"),
        *_tail(manifest.tail),
        *(("graph", _step(step)) for step in history),
        *_calibration(report.get("calibration")),
        *((f"  {step['step']}", _verified(step)) for step in manifest.verification),
        ("verified on", " and ".join(f"{sdk}, {device}" for sdk, device in manifest.proven_on)
                        or "no device yet: the first run verifies it, or refuses"),
        *(("contexts", f"{place}: {read_record(Contexts, found, 'contexts')}") for place, found in
          manifest.contexts.items()),
        ("files", ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())),
        ("intact", "yes, every sha256 matches"),
        ("runs here", "yes" if problem is None else f"no: {problem}; deploy.py build-engine {bundle.folder} -o NEW"),
    ]  # fmt: skip
    return result, "\n".join(f"{name:14}{text}" for name, text in rows)


def _tail(tail: TailShape | None) -> list[tuple[str, str]]:
    """Of an engine that ends in maps."""
    if tail is None:
        return []
    maps = ", ".join(f"{rows}x{columns}x{channels}" for rows, columns, channels in tail.outputs)
    return [("tail", f"the engine gives maps {maps}; a kernel makes the logits, {tail.macs / 1e9:.2f} GMAC a window")]


def _calibration(made: Any) -> list[tuple[str, str]]:
    """What the ranges of an INT8 graph were measured on."""
    if not isinstance(made, dict):
        return []
    text = f"{made.get('method')} over {made.get('windows')} window(s) of {made.get('images')} image(s)"
    return [("calibration", f"{text}, seed {made.get('seed')}, set sha256 {str(made.get('dataset_sha256'))[:12]}")]


def _step(step: Any) -> str:
    """One pass over the graph: what it changed, and what it declined and why."""
    parts = [f"{step['count']} nodes"]
    if step.get("places"):
        parts.append(f"{step['places']} place(s)")
    if step.get("macs_saved"):
        parts.append(f"{step['macs_saved'] / 1e9:.2f} GMAC saved")
    if step.get("ms_saved") is not None:
        parts.append(f"{step['ms_saved']:.1f} ms saved")
    if step.get("declined"):
        parts.append(f"declined: {step['declined']}")
    return f"{step['rule']}: {', '.join(parts)}"


def inspect_layers(bundle: Bundle, threads: int = 0, host_code: bool = False) -> tuple[list[dict[str, Any]], str]:
    """What the engine's layers really run in on this device, as JSON and as text; timed on the bundle's own window.

    threads, host_code: as for open_segmenter.  Raises DeployError where the engine cannot be loaded.
    """
    manifest = bundle.manifest
    backend = get_backend(manifest.backend)
    reason = backend.unavailable()
    if reason:
        raise DeployError(f"bundle {bundle.folder}: it needs {manifest.backend}, and {reason}")
    window = windows_of(Golden.load(bundle.read(GOLDEN)).image, manifest.spec, manifest.tiling)[0]
    with bundle.engine(backend, threads, host_code) as (blob, config):
        layers = backend.layers(blob, config, window)
    return [layer.to_json() for layer in layers], table(layers, manifest.precision)


def _verified(step: Any) -> str:
    labels = f"{100 * step['labels']:.3f} % of labels equal to {step['reference']}"
    return labels if step["max_abs"] is None else f"max |diff| {step['max_abs']:.1e}, {labels}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
