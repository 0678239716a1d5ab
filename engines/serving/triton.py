"""What runs inside of a Triton server, in a process of its own that Triton's Python backend starts for each instance.

An exported repository (engines.serving.export) holds this package; its model.py imports `TritonPythonModel` from here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.errors import DeployError, GpuLostError, NotFiniteError
from engines.gpu.visible import VISIBLE
from engines.images.bands import Decoded
from engines.images.read import MAX_PIXELS, Admit, read_picture
from engines.machine.limits import cores
from engines.machine.share import MachineShare
from engines.proof.first_run import prover
from engines.segmenter import Segmenter, open_segmenter
from engines.spec import IGNORE_LABEL
from engines.stream.flow import Done, Intake, flow
from engines.tiling.device import Mask

BUNDLE = "bundle"  # beside model.py
IMAGE, PIXELS = "image", "pixels"  # inputs: the bytes of image files, or their pixels
LABELS, CONFIDENCE = "labels", "confidence"  # outputs
THREADS, MOST_PIXELS, HOST_CODE = "threads", "max_pixels", "allow_host_code"  # parameters of config.pbtxt


@dataclass
class _Asked:
    """A request of Triton's: its images, and what became of those that are done."""

    request: Any
    images: Sequence[bytes | UInt8]
    confidence: bool
    masks: dict[int, Mask] = field(default_factory=dict)
    error: DeployError | None = None

    @property
    def over(self) -> bool:
        return self.error is not None or len(self.masks) == len(self.images)


@dataclass(frozen=True)
class _Job:
    asked: _Asked
    index: int


class TritonPythonModel:
    """The interface is Triton's: https://github.com/triton-inference-server/python_backend#usage.

    Requests that wait while the device works come together and share its batches of windows, whatever their sizes;
    each is answered as soon as it is done.  A request may hold several images of one size.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle.  Raises DeployError, which Triton shows as the reason why the model is not available."""
        require_first_gpu(args)
        import triton_python_backend_utils as utils

        self._utils: Any = utils
        self._lost: GpuLostError | None = None
        self._unsent: Exception | None = None
        given = json.loads(args["model_config"]).get("parameters", {})
        options = {name: value["string_value"] for name, value in given.items()}
        self._max_pixels = _count(options, MOST_PIXELS, MAX_PIXELS)
        os.environ.update(MachineShare.of(cores(), instances(args)).environment())
        folder = Path(args["model_repository"], args["model_version"], BUNDLE)
        self._open = ExitStack()
        self._segmenter: Segmenter
        self._segmenter, manifest = self._open.enter_context(
            open_segmenter(
                folder, _count(options, THREADS, 0), options.get(HOST_CODE) == "true", prove=prover(self._log)
            )
        )
        # What an engine does at its first frame alone is done before the server says that it is ready.
        tiling, channels = manifest.tiling, len(manifest.spec.mean)
        self._segmenter.segment(np.zeros((tiling.window_h, tiling.window_w, channels), np.uint8), confidence=True)

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer `requests`, each by its sender, in the order in which they are done.

        Raises Triton's exception where an answer could not be sent; Triton answers those with it.
        """
        asked = [self._read(request) for request in requests]
        if self._lost is not None:  # only another process can open the GPU again
            for one in asked:
                one.error = self._lost
        for one in asked:
            if one.over:
                self._answer(one)
        for confidence in (False, True):
            part = [one for one in asked if not one.over and one.confidence == confidence]
            if part:
                self._segment(part, confidence)
        if self._unsent is not None:
            error, self._unsent = self._unsent, None
            raise error

    def finalize(self) -> None:
        self._open.close()

    def _segment(self, part: Sequence[_Asked], confidence: bool) -> None:
        jobs = [_Job(one, index) for one in part for index in range(len(one.images))]
        source = Intake(jobs, self._decoded, lambda picture: picture.pixels)
        with closing(flow(self._segmenter, source, ordered=False, confidence=confidence)) as outcomes:
            for outcome in outcomes:
                asked = outcome.job.asked
                if not asked.over:  # else an image before this one has failed, and that was the answer
                    self._keep(outcome)
                    if asked.over:
                        self._answer(asked)
                if isinstance(outcome.error, GpuLostError):
                    self._lost = outcome.error
                outcome.release()
                del outcome

    def _keep(self, outcome: Done[_Job, Decoded]) -> None:
        asked, mask, picture = outcome.job.asked, outcome.mask, outcome.read.value
        if outcome.error is not None:
            asked.error = outcome.error
            return
        assert mask is not None
        assert picture is not None
        if picture.hidden is not None:
            mask.labels[picture.hidden] = IGNORE_LABEL
        asked.masks[outcome.job.index] = mask

    def _read(self, request: Any) -> _Asked:
        """What is asked for, with the error where it is not to be had."""
        found = [self._utils.get_input_tensor_by_name(request, name) for name in (IMAGE, PIXELS)]
        given = [tensor for tensor in found if tensor is not None]
        wanted = CONFIDENCE in request.requested_output_names()
        if len(given) != 1:
            error = DeployError(f"inputs: got {len(given)} of {IMAGE} and {PIXELS}, expected one of them")
            return _Asked(request, (), wanted, error=error)
        values = given[0].as_numpy()
        return _Asked(request, list(values.reshape(-1) if found[0] is not None else values), wanted)

    def _decoded(self, job: _Job, admit: Admit) -> Decoded:
        image = job.asked.images[job.index]
        if isinstance(image, bytes):
            with _as_file(image) as path:
                try:
                    return read_picture(path, self._max_pixels, self._segmenter.spec.pixels, admit)
                except DeployError as error:
                    text = str(error).replace(f"image {path}", IMAGE).replace("--max-pixels", MOST_PIXELS)
                    raise DeployError(text) from error
        height, width = image.shape[:2]
        if height * width > self._max_pixels:
            raise DeployError(f"{PIXELS}: got {width}x{height}, more than {self._max_pixels} pixels ({MOST_PIXELS})")
        admit(height * width)
        return Decoded(image)

    def _answer(self, asked: _Asked) -> None:
        utils = self._utils
        asked.error = asked.error or _one_size(asked.masks)
        if asked.error is not None:
            ours = isinstance(asked.error, (GpuLostError, NotFiniteError))
            kind = utils.TritonError.INTERNAL if ours else utils.TritonError.INVALID_ARG
            response = utils.InferenceResponse(error=utils.TritonError(str(asked.error), kind))
        else:
            response = utils.InferenceResponse(self._tensors(asked))
        asked.masks.clear()
        try:
            asked.request.get_response_sender().send(response, flags=utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except utils.TritonModelException as error:  # no room in the memory that goes to Triton
            self._unsent = error  # its sender takes no other; raised at the end, it is the answer

    def _tensors(self, asked: _Asked) -> list[Any]:
        masks = [asked.masks[index] for index in sorted(asked.masks)]
        tensors = [self._utils.Tensor(LABELS, _as_one([mask.labels for mask in masks]))]
        if asked.confidence:
            confidences = [mask.confidence for mask in masks if mask.confidence is not None]
            tensors.append(self._utils.Tensor(CONFIDENCE, _as_one(confidences)))
        return tensors

    def _log(self, step: str, text: str) -> None:
        self._utils.Logger.log_info(f"{step}: {text}")


def _as_one(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """(N, H, W); the only one is not copied, for which there may be no room."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _one_size(masks: Mapping[int, Mask]) -> DeployError | None:
    """What is wrong with them as one tensor."""
    count = len({mask.labels.shape for mask in masks.values()})
    if count == 1:
        return None
    return DeployError(
        f"{IMAGE}: got images of {count} sizes in one request, expected one; send each in a request of its own, which "
        "the server takes together"
    )


def require_first_gpu(args: Mapping[str, str]) -> None:
    """Raises DeployError for another GPU: engines take the first, and Triton may have started CUDA before."""
    if args["model_instance_kind"] == "GPU" and args["model_instance_device_id"] != "0":
        raise DeployError(
            f"instance_group: got GPU {args['model_instance_device_id']}, expected gpus: [ 0 ]; for others start a "
            f"server for each, with {VISIBLE}"
        )


def instances(args: Mapping[str, str]) -> int:
    """How many processes serve this model, each with an engine: here all are on one GPU, or on none."""
    groups = json.loads(args["model_config"]).get("instance_group", [])
    return max(1, sum(int(group.get("count", 1)) for group in groups))


def _count(options: Mapping[str, str], name: str, default: int) -> int:
    """A parameter of config.pbtxt.  Raises DeployError unless it is a whole number, 0 or more."""
    text = options.get(name, str(default))
    if not text.isdecimal():
        raise DeployError(f"config.pbtxt: got {name} {text!r}, expected a whole number, 0 or more")
    return int(text)


@contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    """A file of memory alone: what reads images looks at them several times."""
    handle = os.memfd_create("image")
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(content)
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
