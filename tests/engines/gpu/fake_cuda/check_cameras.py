"""Cameras that share a GPU: windows of several in one batch.  Run by test_cuda.py, with the fake driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction

import numpy as np

from engines.images.bands import Decoded
from engines.video.feed import Excerpt, Feed
from engines.video.frames import VideoFrame, VideoInfo, always
from engines.video.run import labelled_together
from tests.engines.gpu.fake_cuda.counts import TILING, during
from tests.engines.gpu.fake_cuda.support import Engine, configure, image, on_host, opened, same


class _Camera:
    """One frame, after which it hangs as long as it may."""

    def __init__(self, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        self.info, self.notes = VideoInfo(width, height, None, Fraction(1, 25), live=True), list[str]()
        self._picture = picture

    def frames(self, wanted: Callable[[], bool] = always) -> Iterator[VideoFrame]:
        yield VideoFrame(0, Fraction(0), time.perf_counter(), lambda: Decoded(self._picture))
        while wanted():
            time.sleep(0.001)


def test_frames_of_several_cameras_share_a_batch() -> None:
    """Each of one window, and of any size: one run of the engine for all that are there."""
    configure()
    engine = Engine(TILING, 4)
    pictures = [image(*size, seed) for seed, size in enumerate([(64, 96), (40, 50), (1, 1), (64, 90)])]
    host = on_host(engine, TILING)
    with opened(engine, TILING) as (segmenter, _, _):
        for _ in range(3):  # runs, is recorded, is replayed
            with ExitStack() as stack:
                feeds = [stack.enter_context(Feed(_Camera(each), Excerpt(seconds=0.5))) for each in pictures]
                while not all(feed.filled for feed in feeds):
                    time.sleep(0.001)
                found = []
                counts = during(lambda feeds=feeds, found=found: found.extend(labelled_together(segmenter, feeds)))  # type: ignore[misc]
            assert [feed for feed, _, _ in found] == feeds
            for (_, _, mask), picture in zip(found, pictures, strict=True):
                assert same(mask, host.segment(picture))
        assert (counts["engines"], counts["graphs"]) == (1, 1)
