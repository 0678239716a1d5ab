"""The videos among the inputs of `run`, one after another."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from engines.errors import DeployError, GpuLostError, without_secrets
from engines.images.videos import is_endless
from engines.segmenter import Segmenter
from engines.video.run import VideoOptions, VideoReport, run_video


def check_words(sources: Collection[str], options: VideoOptions) -> None:
    """Raises DeployError where what was asked for has no sense for these inputs, or for want of one."""
    if not sources and (options.every != 1 or options.seconds is not None):
        raise DeployError("--every, --seconds: none of the inputs is a video")
    endless = [without_secrets(each) for each in sources if is_endless(each)]
    if len(endless) > 1 and options.seconds is None:
        raise DeployError(
            f"inputs {' and '.join(endless)}: none has an end, and one is run after the other; say how long with "
            "--seconds, or start a run for each"
        )


def run_videos(
    segmenter: Segmenter, targets: Mapping[str, Path], options: VideoOptions, lost: str | None
) -> Iterator[tuple[str, VideoReport | DeployError]]:
    """What becomes of each source, as it does: one that cannot be read or written holds up no other.

    targets: the labels of each.  lost: why nothing runs any more.  After Ctrl-C none is begun.
    """
    stopped = False
    for source, target in targets.items():
        try:
            if lost is not None:
                raise GpuLostError(lost)
            if stopped:
                raise DeployError("not run: stopped before")
            report = run_video(segmenter, source, target, options)
        except DeployError as error:
            lost = str(error) if isinstance(error, GpuLostError) else lost
            yield source, error
        else:
            lost = report.broken if report.lost else lost
            stopped = report.stopped
            yield source, report
