"""When it is said that a worker does not get on."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from engines.fleet import watch
from tests.engines.rasters.maps import write


class _Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_what_is_quiet_is_said_ever_less_often_until_it_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(watch, "time", clock)
    place, said = watch.Watch(), []
    for second in range(1, 1001):
        clock.now += 1
        place.answered(progress=(second // 300, 0), rows=False)  # a window every five minutes
        said.append((second, place.said()))
    text = "no progress for {} s; it answers, but no window ends"
    expected = [(300 * each + quiet, text.format(quiet)) for each in range(4) for quiet in (60, 120, 240)]
    assert [each for each in said if each[1]] == expected[:-2]


def test_a_worker_that_does_not_answer_is_told_from_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(watch, "time", clock)
    place = watch.Watch()
    clock.now += 500
    place.asked(afresh=True)  # it had nothing to do for so long
    assert (place.quiet, place.said()) == (0, "")
    clock.now += 61
    assert place.said() == "no progress for 61 s, and it does not answer"
    place.answered(progress=(0, 0), rows=True)
    assert place.quiet == 0


def test_bytes_that_a_thread_moves_are_its_own_and_grow_while_it_writes(tmp_path: Path) -> None:
    """By a library, too, which tells nobody how far it is."""
    pytest.importorskip("rasterio", reason="rasterio, which writes rasters, is not installed")
    turn, done, ends = Event(), Event(), Event()

    def works() -> None:
        turn.wait(120)
        try:
            write(tmp_path / "a.tif", np.ones((512, 512, 1), np.uint8), compress=None)
        finally:
            done.set()
            ends.wait(120)

    thread = Thread(target=works)
    thread.start()
    try:
        assert thread.native_id is not None
        if not Path(f"/proc/self/task/{thread.native_id}/io").exists():
            pytest.skip("this kernel does not count what threads read and write")
        before = watch.bytes_moved(thread.native_id)
        (tmp_path / "other").write_bytes(bytes(2**20))
        assert watch.bytes_moved(thread.native_id) == before
        turn.set()
        done.wait(120)
        assert watch.bytes_moved(thread.native_id) - before >= 512 * 512
    finally:
        turn.set()
        ends.set()
        thread.join()
    assert watch.bytes_moved(2**23) == 0, "no thread has such a number"


def test_what_is_written_after_the_windows_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(watch, "time", clock)
    place = watch.Watch()
    for second in range(300):
        clock.now += 1
        place.answered(progress=(7, 100 * (second // 50)), rows=False)
        assert place.quiet <= 50
        assert not place.said()
