"""The videos among the inputs of `run`: files one after another, then all at once whatever may have no end."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from engines.errors import DeployError, GpuLostError
from engines.images.videos import is_open_ended
from engines.segmenter import Segmenter
from engines.video.report import VideoOptions, VideoReport
from engines.video.run import Told, run_together


def check_words(sources: Collection[str], options: VideoOptions) -> None:
    """Raises DeployError where what was asked for has no sense for want of a video."""
    if not sources and (options.every != 1 or options.seconds is not None):
        raise DeployError("--every, --seconds: none of the inputs is a video")


def run_videos(
    segmenter: Segmenter, targets: Mapping[str, Path], options: VideoOptions, lost: str | None, tell: Told
) -> None:  # fmt: skip
    """Tell what becomes of each source, as it does: one that cannot be read or written holds up no other.

    Files keep the device busy one by one.  A camera, a stream and a pipe are not waited for, so that they come last,
    and together.  targets: the labels of each.  lost: why nothing runs any more.  After Ctrl-C none is begun.
    """
    stopped = False

    def told(source: str, outcome: VideoReport | DeployError) -> None:
        nonlocal lost, stopped
        if isinstance(outcome, VideoReport):
            lost, stopped = outcome.broken if outcome.lost else lost, stopped or outcome.stopped
        elif isinstance(outcome, GpuLostError):
            lost = str(outcome)
        tell(source, outcome)

    files = [{source: target} for source, target in targets.items() if not is_open_ended(source)]
    beside = {source: target for source, target in targets.items() if is_open_ended(source)}
    for group in [*files, beside] if beside else files:
        if lost is None and not stopped:
            run_together(segmenter, group, options, told)
            continue
        for source in group:
            tell(source, GpuLostError(lost) if lost is not None else DeployError("not run: stopped before"))
