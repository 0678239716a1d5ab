"""Real video files, made by FFmpeg through PyAV, and read back with nothing but PyAV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.uint8]
RATE = Fraction(25)


def pictures(count: int, height: int = 64, width: int = 96, channels: int = 3) -> list[Array]:
    """Coloured blocks, no two alike and none like its mirror image."""
    rng = np.random.default_rng(count)
    made = []
    for _ in range(count):
        blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), channels), np.uint8)
        made.append(np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width])
    return made


def write(
    path: Path | str, shown: Sequence[Array], *, codec: str = "ffv1", kind: str = "yuv420p", times: Any = None,
    tick: Fraction | None = None, rate: Fraction = RATE, turn: int | None = None, matrix: int | None = None,
    full: bool = False, aspect: Fraction | None = None, options: dict[str, str] | None = None,
    container: dict[str, str] | None = None, curve: int | None = None, **opening: Any,
) -> None:  # fmt: skip
    """times: in ticks, as many as `shown`; None for the constant rate.  matrix, curve: an AVColorSpace and an
    AVColorTransferCharacteristic that are tagged."""
    tick = tick or 1 / rate
    with av.open(str(path), "w", options=container or {}, **opening) as out:
        stream: Any = out.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = shown[0].shape[:2]
        stream.pix_fmt = kind
        stream.codec_context.time_base = tick
        stream.codec_context.color_range = 2 if full else 1
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        if curve is not None:
            stream.codec_context.color_trc = curve
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if turn is not None:
            stream.set_display_rotation(turn)
        for index, picture in enumerate(shown):
            given = {1: "gray", 3: "rgb24", 4: "rgba"}[1 if picture.ndim == 2 else picture.shape[2]]
            frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=given)
            frame = frame.reformat(format=kind, dst_colorspace=matrix, dst_color_range=2 if full else 1)
            frame.pts, frame.time_base = (index if times is None else times[index]), tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def decoded(path: Path, kind: str = "rgb24") -> list[tuple[Fraction, Array]]:
    """(seconds, pixels) of every frame, by PyAV's own conversion."""
    with av.open(str(path)) as file:
        return [
            (Fraction(frame.pts * frame.time_base), frame.to_ndarray(format=kind)) for frame in file.decode(video=0)
        ]


def jpeg(picture: Array) -> bytes:
    Image.fromarray(picture).save(data := io.BytesIO(), "JPEG", quality=95)
    return data.getvalue()


def labels(path: Path) -> list[Array]:
    return [pixels for _, pixels in decoded(path, "gray")]


def times(path: Path) -> list[float]:
    return [float(moment) for moment, _ in decoded(path, "gray")]
