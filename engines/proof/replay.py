"""On a GPU the frame that users get is a recorded one: it is run, recorded, replayed, and held against itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.contract import UInt8
from engines.errors import GateError
from engines.images.write import confidence_bytes
from engines.proof.agreement import Agreement
from engines.segmenter import Mask, Segmenter

STEP, REFERENCE = "replayed frame", "the frame started part by part"


def replayed(image: UInt8, segmenter: Segmenter) -> list[Agreement]:
    """Whether replaying gives the bits of the labels, the confidence and the logits that running part by part gives;
    and whether the confidence's bytes are those that the host would make of it.

    Two images take turns, so that what is left of one cannot pass for the answer to the other.  Empty where frames are
    not recorded.  Raises GateError.
    """
    device, pictures = segmenter.device, (image, 255 - image[::-1, ::-1])
    if not device.graph:
        return []
    for confidence in (False, True):  # two recordings
        before, device.parts = device.parts, True  # which forbids a graph
        try:
            expected = [(segmenter.segment(picture, confidence), device.held_logits()) for picture in pictures]
        finally:
            device.parts = before
        for picture, (mask, logits) in zip(pictures, expected, strict=True):
            got = segmenter.segment(picture, confidence)
            if device.graph != "on":
                return []
            _require(mask, got, equal_logits=device.held_logits() == logits)
    written = segmenter.segment(picture, "bytes").confidence
    _require(mask, replace(mask, confidence=written), equal_logits=True)
    return [Agreement(STEP, REFERENCE, labels=1.0)]


def _require(expected: Mask, got: Mask, equal_logits: bool) -> None:
    wrong = [("logits", equal_logits), ("labels", np.array_equal(expected.labels, got.labels))]
    if expected.confidence is not None and got.confidence is not None:
        in_bytes = got.confidence.dtype == np.uint8
        right = confidence_bytes(expected.confidence) if in_bytes else expected.confidence
        wrong.append(("confidence in bytes" if in_bytes else "confidence", right.tobytes() == got.confidence.tobytes()))
    names = [name for name, equal in wrong if not equal]
    if names:
        raise GateError(
            f"{STEP}: the {' and '.join(names)} are not, bit by bit, those of {REFERENCE}: the engine cannot be "
            "recorded as a CUDA graph; report this network"
        )
