"""Frames of several feeds take turns, whoever is fast, slow, silent, or has no room for what comes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from queue import SimpleQueue

import numpy as np
import pytest

from engines.errors import DeployError
from engines.images.bands import Decoded
from engines.video.feed import Excerpt, Feed
from engines.video.frames import VideoFrame, VideoInfo, always
from engines.video.turns import Turns


class _Told:
    """A reader that has a frame whenever it is told to."""

    def __init__(self, live: bool) -> None:
        self.info, self.notes = VideoInfo(64, 64, Fraction(25), Fraction(1, 25), live=live), list[str]()
        self.orders = SimpleQueue[DeployError | bool]()

    def frames(self, wanted: Callable[[], bool] = always) -> Iterator[VideoFrame]:
        index = 0
        while (order := self.orders.get()) is not False:
            if isinstance(order, DeployError):
                raise order
            yield VideoFrame(index, Fraction(index, 25), time.perf_counter(), _blank)
            index += 1


def _blank() -> Decoded:
    return Decoded(np.zeros((64, 64, 3), np.uint8))


class Cameras:
    """Feeds by name."""

    def __init__(self, stack: ExitStack, names: str, live: bool = True) -> None:
        self._readers = {name: _Told(live) for name in names}
        self.feeds = {name: stack.enter_context(Feed(reader, Excerpt())) for name, reader in self._readers.items()}
        self.names = {feed: name for name, feed in self.feeds.items()}
        stack.callback(lambda: [reader.orders.put(False) for reader in self._readers.values()])

    def send(self, names: str) -> None:
        """A frame of each, which is there on return."""
        for name in names:
            feed = self.feeds[name]
            before = feed.taken + feed.dropped + feed.filled
            self._readers[name].orders.put(True)
            _until(lambda feed=feed, before=before: feed.taken + feed.dropped + feed.filled > before)  # type: ignore[misc]

    def end(self, name: str, error: DeployError | None = None) -> None:
        self._readers[name].orders.put(error or False)
        _until(lambda: self.feeds[name].over)


def _until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not there():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def test_the_one_whose_last_is_longest_ago_is_next(stack: ExitStack) -> None:
    """A camera that always has another frame gets no second turn before those that wait."""
    cameras = Cameras(stack, "abc")
    turns = Turns(cameras.feeds.values())
    frames = iter(turns)
    steps = [
        ("abc", "a"),
        ("a", "b"),
        ("", "c"),
        ("", "a"),
        ("a", "a"),
        ("ab", "b"),
        ("", "a"),
        ("abc", "c"),
        ("a", "b"),
    ]
    for sent, name in [*steps, ("", "a")]:
        cameras.send(sent)
        assert turns.ready
        assert cameras.names[next(frames)[0]] == name
    assert not turns.ready
    assert {name: feed.dropped for name, feed in cameras.feeds.items()} == {"a": 1, "b": 0, "c": 0}


def test_a_silent_one_holds_up_nobody(stack: ExitStack) -> None:
    cameras = Cameras(stack, "abc")
    turns = Turns(cameras.feeds.values())
    frames = iter(turns)
    for _ in range(5):
        cameras.send("bc")
        assert [cameras.names[next(frames)[0]] for _ in range(2)] == ["b", "c"]
        assert not turns.ready
    assert cameras.feeds["b"].dropped == cameras.feeds["c"].dropped == 0


def test_one_whose_files_do_not_keep_up_is_passed_over_and_keeps_its_newest(stack: ExitStack) -> None:
    cameras, behind = Cameras(stack, "ab"), set[str]()
    turns = Turns(cameras.feeds.values(), lambda feed: cameras.names[feed] not in behind)
    frames = iter(turns)
    behind.add("a")
    for index in range(4):
        cameras.send("ab")
        feed, frame = next(frames)
        assert (cameras.names[feed], frame.index) == ("b", index)
        assert not turns.ready
    behind.clear()
    cameras.send("b")
    assert [(cameras.names[feed], frame.index) for feed, frame in (next(frames), next(frames))] == [("a", 3), ("b", 4)]
    assert cameras.feeds["a"].dropped == 3


def test_the_end_of_one_is_heard_while_the_others_are_silent(stack: ExitStack) -> None:
    """And the last one's is the end of all, each with its own error."""
    cameras, idle = Cameras(stack, "ab"), list[list[str]]()
    error = DeployError("cut")

    def settle() -> None:
        idle.append([name for name, feed in cameras.feeds.items() if feed.over])
        if idle[-1] == []:
            cameras.end("a", error)
        elif idle[-1] == ["a"]:
            cameras.send("b")

    frames = iter(Turns(cameras.feeds.values(), idle=settle))
    assert cameras.names[next(frames)[0]] == "b"
    assert idle == [[], ["a"]]
    cameras.end("b")
    assert list(frames) == []
    assert (cameras.feeds["a"].error, cameras.feeds["b"].error) == (error, None)
