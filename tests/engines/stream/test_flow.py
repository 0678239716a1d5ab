"""Threads that read ahead of a device: order, bounds, slow and broken files, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.errors import DeployError, GpuLostError
from engines.stream.ahead import read_ahead
from engines.stream.behind import Behind
from engines.stream.budget import LEAST, PixelBudget
from engines.stream.flow import Done, Intake, flow
from engines.stream.threads import reading_threads
from engines.tiling.device import Mask, Timings

WAIT = 30  # seconds until a test that waits for a thread is called stuck


class _Starter:
    """A device that takes so many at once; its labels are what was read.  fails: by job."""

    def __init__(self, in_flight: int = 1, fails: dict[int, DeployError] | None = None) -> None:
        self.device: Any = SimpleNamespace(name="test", in_flight=in_flight)
        self.under_way = self.most = 0
        self.started: list[int] = []
        self.fails = fails or {}

    def start(self, image: Any, confidence: bool = False) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.started.append(int(image))
        return SimpleNamespace(timings=Timings(), views=(), done=False, mask=lambda: self._mask(image))

    def _mask(self, image: Any) -> Mask:
        self.under_way -= 1
        if int(image) in self.fails:
            raise self.fails[int(image)]
        return Mask(np.array(image))


def _source(jobs: Any, read: Callable[[int, Callable[[int], None]], Any], held: bool = False) -> Intake[int, Any]:
    return Intake(jobs, read, lambda found: found, lambda job: held)


def _no_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("edgeseg")]


def _until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_order_is_kept_where_it_is_asked_for(in_flight: int) -> None:
    later = threading.Event()

    def read(job: int, admit: Callable[[int], None]) -> int:
        admit(100)
        if job == 0:
            assert later.wait(WAIT)  # the first file is slow
        if job == 1:
            later.set()
        return job

    starter, seen = _Starter(in_flight), []
    for outcome in flow(starter, _source(range(50), read), ordered=True):
        seen.append(outcome.job)
        outcome.release()
    assert seen == list(range(50)) == starter.started
    assert starter.most <= in_flight
    assert _no_threads()


def test_a_slow_file_delays_nobody_where_order_is_not() -> None:
    others = threading.Event()

    def read(job: int, admit: Callable[[int], None]) -> int:
        admit(100)
        assert job != 3 or others.wait(WAIT)
        return job

    seen = []
    for outcome in flow(_Starter(2), _source(range(200), read), ordered=False):
        seen.append(outcome.job)
        outcome.release()
        if len(seen) == 199:
            others.set()
    assert seen[-1] == 3
    assert sorted(seen) == list(range(200))


@pytest.mark.parametrize("ordered", [True, False])
def test_pixels_in_flight_are_bounded_and_used_to_the_bound(ordered: bool) -> None:
    """Counted from before an image is decoded to its release: never above, and four of four in use."""
    size, count = 90_000, 4
    alive, most, lock = 0, 0, threading.Lock()

    def add(pixels: int) -> None:
        nonlocal alive, most
        with lock:
            alive += pixels
            most = max(most, alive)

    def read(job: int, admit: Callable[[int], None]) -> int:
        admit(size)
        add(size)
        return job

    held: list[Done[int, Any]] = []
    outcomes = flow(_Starter(2), _source(range(40), read), ordered=ordered, budget=PixelBudget(count * size + 1))
    with closing(outcomes):
        for outcome in outcomes:
            held.append(outcome)
            if len(held) == count:  # all that there is room for; nothing more comes before one is written
                time.sleep(0.02)
                assert alive == count * size
                add(-size)
                held.pop(0).release()
    assert most == count * size


@pytest.mark.parametrize("ordered", [True, False])
def test_images_larger_than_the_bound_go_alone_and_small_ones_count_as_more(ordered: bool) -> None:
    alive: set[int] = set()
    together: list[set[int]] = []
    lock = threading.Lock()

    def read(job: int, admit: Callable[[int], None]) -> int:
        admit(10**9 if job % 5 == 0 else 1)
        with lock:
            alive.add(job)
            together.append(set(alive))
        return job

    seen = []
    for outcome in flow(_Starter(2), _source(range(30), read), ordered=ordered, budget=PixelBudget(3 * LEAST)):
        seen.append(outcome.job)
        with lock:
            alive.discard(outcome.job)
        outcome.release()
    assert sorted(seen) == list(range(30))
    assert all(len(each) == 1 for each in together if any(job % 5 == 0 for job in each))
    assert max(map(len, together)) <= 3


def test_a_broken_file_and_a_failed_frame_come_in_their_place() -> None:
    def read(job: int, admit: Callable[[int], None]) -> int:
        if job == 2:
            raise DeployError("cannot be read")
        admit(10**9)  # each alone: what failed must have given back its pixels
        if job == 4:
            raise DeployError("damaged")
        return job

    fails = {7: DeployError("NaN")}
    outcomes = []
    for outcome in flow(_Starter(2, fails), _source(range(10), read), ordered=True):
        outcomes.append((outcome.job, str(outcome.error or "")))
        outcome.release()
    assert [text for _, text in outcomes] == ["", "", "cannot be read", "", "damaged", "", "", "NaN", "", ""]


def test_after_a_lost_gpu_nothing_more_is_read() -> None:
    read: list[int] = []

    def reading(job: int, admit: Callable[[int], None]) -> int:
        read.append(job)
        return job

    starter = _Starter(2, {job: GpuLostError("lost") for job in range(1000)})
    errors = [outcome.error for outcome in flow(starter, _source(range(1000), reading), ordered=False)]
    assert len(errors) == 1000
    assert all(isinstance(error, GpuLostError) for error in errors)
    assert len(read) <= reading_threads() + 3 + 2
    assert len(starter.started) <= 2


def test_of_images_that_are_held_already_one_is_taken_ahead() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(20):
            taken.append(job)
            yield job

    starter = _Starter(2)
    for index, outcome in enumerate(flow(starter, _source(jobs(), lambda job, admit: job, held=True), ordered=True)):
        assert outcome.job == index
        assert len(taken) <= index + 1 + 2
    assert starter.most == 2


def test_the_iterators_own_error_comes_after_the_images_before() -> None:
    def jobs() -> Iterator[int]:
        yield from range(5)
        raise DeployError("no more")

    outcomes = flow(_Starter(2), _source(jobs(), lambda job, admit: job), ordered=True)
    assert [next(outcomes).job for _ in range(5)] == list(range(5))
    with pytest.raises(DeployError, match="no more"):
        next(outcomes)


@pytest.mark.parametrize("ordered", [True, False])
def test_stopping_in_the_middle_ends_threads_that_wait_for_pixels(ordered: bool) -> None:
    waiting: list[int] = []

    def read(job: int, admit: Callable[[int], None]) -> int:
        waiting.append(job)
        admit(10**9)
        return job

    outcomes = flow(_Starter(), _source(range(100), read), ordered=ordered)
    first = next(outcomes)  # never released
    _until(lambda: len(waiting) > 1)
    outcomes.close()
    assert first.error is None
    assert _no_threads()


def test_a_defect_in_reading_is_raised_and_ends_the_threads() -> None:
    def read(job: int, admit: Callable[[int], None]) -> int:
        admit(100)
        return 1 // (job - 3)

    with pytest.raises(ZeroDivisionError):
        list(flow(_Starter(), _source(range(10), read), ordered=True))
    assert _no_threads()


def test_reading_ahead_keeps_order_and_bounds() -> None:
    read: list[int] = []

    def reading(job: int, admit: Callable[[int], None]) -> int:
        admit(100)
        read.append(job)
        if job == 70:
            raise DeployError("cannot be read")
        return job

    found = read_ahead(range(100), reading)
    for job in range(70):
        assert next(found) == job
        assert len(read) <= job + 1 + reading_threads() + 2
    with pytest.raises(DeployError, match="cannot be read"):
        next(found)
    assert _no_threads()


def test_work_behind_is_done_once_each_and_an_error_is_the_works_own() -> None:
    def call(job: int) -> int:
        if job == 3:
            raise DeployError("disk full")
        return job * job

    with Behind[int, int]() as behind:
        for job in range(50):
            behind.put(job, lambda job=job: call(job))
        results = dict(behind.done(wait=True))
        assert list(behind.done(wait=True)) == []
    assert isinstance(results.pop(3), DeployError)
    assert results == {job: job * job for job in range(50) if job != 3}
    assert _no_threads()


def test_work_behind_that_has_not_begun_is_dropped_after_an_error() -> None:
    done: list[int] = []
    go_on = threading.Event()

    def interrupted() -> None:
        with Behind[int, None](count=1) as behind:
            behind.put(0, lambda: done.append(0) if go_on.wait(WAIT) else None)
            for job in range(1, 50):
                behind.put(job, lambda job=job: done.append(job))
            threading.Timer(0.05, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [0]
    assert _no_threads()


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_frame_is_not_held_back_for_the_next_one(in_flight: int) -> None:
    """A camera's next frame is awaited only once nothing is under way: labels come when they are there."""
    arrived = [threading.Event() for _ in range(3)]
    arrived[0].set()
    taken = 0

    def camera() -> Iterator[int]:
        nonlocal taken
        for index, event in enumerate(arrived):
            assert event.wait(WAIT), f"frame {index} was awaited before the labels of the last were given out"
            taken += 1
            yield index

    source = replace(
        _source(camera(), lambda job, admit: job, held=True), ready=lambda: taken == 3 or arrived[taken].is_set()
    )
    for outcome in flow(_Starter(in_flight), source, ordered=True):
        outcome.release()
        if outcome.job < 2:
            arrived[outcome.job + 1].set()
    assert taken == 3
    assert _no_threads()


def test_jobs_that_come_later_keep_nothing_waiting() -> None:
    """What was read, and what is under way, ends though there is no other job for a long time."""
    queue, came = SimpleQueue[int | None](), list[int]()
    for job in (0, 1, 2):
        queue.put(job)

    def jobs() -> Iterator[int]:
        while (job := queue.get(timeout=WAIT)) is not None:
            yield job

    source = replace(_source(jobs(), lambda job, admit: job), ready=lambda: not queue.empty())
    for outcome in flow(_Starter(in_flight=2), source, ordered=False):
        came.append(outcome.job)
        outcome.release()
        if len(came) == 3:  # only now are there more
            for late in (3, 4, None):
                queue.put(late)
    assert sorted(came) == [0, 1, 2, 3, 4]
    assert _no_threads()


def test_a_held_job_that_cannot_be_read_is_its_own_end_alone() -> None:
    def read(job: int, admit: Callable[[int], None]) -> Any:
        if job == 2:
            raise DeployError("cannot be converted")
        return job

    done = list(flow(_Starter(), _source(range(5), read, held=True), ordered=True))
    assert [each.job for each in done] == [*range(5)]
    assert [str(each.error) for each in done if each.error] == ["cannot be converted"]
