"""When it is said that a worker does not get on."""

from __future__ import annotations

import pytest

from engines.fleet import watch


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
        place.answered(windows=second // 300, rows=False)  # a window every five minutes
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
    place.answered(windows=0, rows=True)
    assert place.quiet == 0
