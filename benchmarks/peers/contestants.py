"""Everybody who takes part.  Each function returns `segment(image, keep) -> Frame`; it runs in its own process."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.frame import Frame
from benchmarks.peers.models import PeerModel, torch_module

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.slide import Network

    Segment = Callable[[NDArray[np.uint8], bool], Frame]


class Unavailable(Exception):
    """A contestant cannot take part here; the message says why, and what would help."""


def eager(model: PeerModel, work: Path, threads: int) -> Segment:
    return _as_mmseg(model, torch_module(model, work))


def compiled(model: PeerModel, work: Path, threads: int) -> Segment:
    import shutil

    import torch
    import torch._inductor.config

    if not (shutil.which("g++") or shutil.which("clang++")):
        raise Unavailable("torch.compile needs a C++ compiler: apt-get install g++")
    torch._inductor.config.freezing = True  # weights become constants and are packed: inference only
    return _lean(model, torch.compile(torch_module(model, work)))


def in_onnxruntime(model: PeerModel, work: Path, threads: int) -> Segment:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(work / "plain.onnx", options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return _lean(model, lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]))


def in_openvino(hint: str, lean: bool = True) -> Callable[[PeerModel, Path, int], Segment]:
    def make(model: PeerModel, work: Path, threads: int) -> Segment:
        import openvino
        import torch

        core = openvino.Core()
        if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Unavailable("this CPU has no BF16 instructions; needs AVX512_BF16 or AMX")
        properties = {
            "INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
        }  # fmt: skip
        network = core.compile_model(work / "plain.onnx", "CPU", properties)
        request = network.create_infer_request()

        def run(x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0])

        return _lean(model, run) if lean else _as_mmseg(model, run)

    return make


def in_monai(model: PeerModel, work: Path, threads: int) -> Segment:
    import torch
    import torch.nn.functional as F
    from monai.inferers import sliding_window_inference

    from benchmarks.slide import Stopwatch, normalised

    network = torch_module(model, work)

    @torch.inference_mode()
    def segment(image: NDArray[np.uint8], keep: bool) -> Frame:
        watch = Stopwatch(network)

        def predict(window: torch.Tensor) -> torch.Tensor:
            # Full size before averaging, as in mmsegmentation; MONAI would average at the logits' resolution.
            return F.interpolate(watch(window), size=window.shape[2:], mode="bilinear", align_corners=False)

        overlap = 1 - (model.stride + 1e-6) / model.window  # MONAI truncates window * (1 - overlap) to whole pixels
        logits = sliding_window_inference(normalised(image), model.window, 1, predict, overlap, mode="constant")
        return watch.frame(logits.max(1).indices[0].to(torch.uint8).numpy(), None)

    return segment


def in_edgeseg(precision: str) -> Callable[[PeerModel, Path, int], Segment]:
    return lambda model, work, threads: EdgeSegment(work / f"edgeseg-{precision}", threads)


class EdgeSegment:
    """A bundle, open until the process ends.  Nothing here imports torch: the process is what a device would run."""

    def __init__(self, bundle: Path, threads: int) -> None:
        from engines.segmenter import open_segmenter

        self._opened = open_segmenter(bundle, threads)
        self._segmenter, _ = self._opened.__enter__()

    def __call__(self, image: NDArray[np.uint8], keep: bool) -> Frame:
        begin, before = time.perf_counter(), self._segmenter.device.timings.engine
        labels = self._segmenter.segment(image).labels
        total = time.perf_counter() - begin
        network = self._segmenter.device.timings.engine - before
        return Frame(labels, network, total - network)


def _as_mmseg(model: PeerModel, network: Network) -> Segment:
    from benchmarks.slide import slide

    return lambda image, keep: slide(image, network, model.window, model.stride, keep=keep)


def _lean(model: PeerModel, network: Network) -> Segment:
    from benchmarks.slide import slide

    return lambda image, keep: slide(image, network, model.window, model.stride, lean=True, keep=keep)


REFERENCE = "eager"
PEERS: dict[str, tuple[str, Callable[[PeerModel, Path, int], Segment], tuple[str, ...]]] = {
    # name: (title, maker, the distributions whose versions matter)
    "eager": ("{torch} eager, mmseg stitching", eager, ("torch", "transformers")),
    "monai": ("{torch} eager, MONAI inferer", in_monai, ("monai",)),
    "compile": ("{torch} + torch.compile", compiled, ()),
    "ort": ("{export} in ONNX Runtime, fp32", in_onnxruntime, ("onnxruntime",)),
    "openvino-mmseg": ("{export} in OpenVINO, fp32, mmseg stitching", in_openvino("f32", lean=False), ("openvino",)),
    "openvino-fp32": ("{export} in OpenVINO, fp32", in_openvino("f32"), ("openvino",)),
    "openvino-bf16": ("{export} in OpenVINO, bf16", in_openvino("bf16"), ("openvino",)),
}

# glibc returns every large tensor to the kernel and faults it in again for the next one.  PyTorch's tuning guide
# advises another allocator; this setting has the same effect.  Everybody gets it but those with mmsegmentation's
# stitching, which are what people start from, and edgeseg, which is run as it ships.
KEEP_MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"}


def tuning(contestant: str) -> dict[str, str]:
    """Environment variables that an informed user would set for a contestant."""
    return KEEP_MEMORY if contestant in PEERS and contestant not in (REFERENCE, "openvino-mmseg") else {}


def title(contestant: str, model: PeerModel) -> str:
    """How a contestant is called in tables and plots."""
    if contestant in PEERS:
        torch, export = ("transformers", "Hugging Face export") if model.hub else ("PyTorch", "plain export")
        return PEERS[contestant][0].format(torch=torch, export=export)
    return contestant.replace("-", " ")


def make(contestant: str, model: PeerModel, work: Path, threads: int) -> tuple[Segment, dict[str, str]]:
    """`segment` and the versions of what it runs on.  Raises Unavailable or ImportError."""
    if contestant in PEERS:
        _, maker, distributions = PEERS[contestant]
        import torch

        torch.set_num_threads(threads)
    else:
        maker, distributions = in_edgeseg(contestant.removeprefix("edgeseg-")), ("edgeseg", "numpy")
    segment = maker(model, work, threads)
    return segment, {name: version(name) for name in distributions}
