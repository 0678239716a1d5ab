"""Which task goes to which worker, and what becomes of those that a dead one had."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.fleet.deal import CRASHED, KILLED, TAKEN, Deal, Death, Hand
from engines.fleet.worker import Task
from engines.report.rows import IMAGE, RASTER, VIDEO


def _images(count: int) -> list[Task]:
    return [Task(index, IMAGE, Path(f"{index}.png"), Path(f"out/{index}.png")) for index in range(count)]


def test_a_worker_has_as_many_as_it_has_use_for_and_less_towards_the_end() -> None:
    deal, first, second = Deal(_images(20)), Hand(8), Hand(8)
    assert len(deal.more(first, 2)) == 8
    assert len(deal.more(second, 2)) == 7  # of the twelve that are left
    for index in list(first.tasks)[:3]:
        deal.done(first, index)
    assert not deal.more(first, 2)  # it has five, the other has seven, and five are left: nobody hoards
    assert deal.left == 17
    while deal.left:
        for hand in (first, second):
            for index in list(hand.tasks):
                deal.done(hand, index)
            deal.more(hand, 2)
    assert not first.tasks
    assert not second.tasks


def test_what_a_dead_worker_had_is_done_by_others_one_at_a_time_and_once() -> None:
    deal, first, second = Deal(_images(10)), Hand(4), Hand(4)
    had = {task.index for task in deal.more(first, 2)}
    assert not deal.died(first, Death("killed", KILLED))
    seen = []
    while deal.left:
        deal.more(second, 1)
        if seen and had & set(second.tasks):
            assert len(second.tasks) == 1
        for index in list(second.tasks):
            deal.done(second, index)
            seen.append(index)
    assert sorted(seen) == list(range(10))
    assert set(seen[-4:]) == had


@pytest.mark.parametrize(("tries", "deaths"), [(CRASHED, 3), (KILLED, 4)])
def test_the_task_that_kills_is_found_and_the_rest_is_done(tries: int, deaths: int) -> None:
    deal, done, failed, dead = Deal(_images(9)), [], {}, 0
    while deal.left:
        hand = Hand(5)
        deal.more(hand, 1)
        if 3 in hand.tasks:
            dead += 1
            failed |= {index: row.error for index, row in deal.died(hand, Death("its process died", tries))}
            continue
        for index in list(hand.tasks):
            deal.done(hand, index)
            done.append(index)
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert failed == {3: f"tried {tries} times by a worker that had nothing else: its process died"}
    assert dead == deaths


def test_a_task_is_not_to_blame_for_machines_that_were_taken_away() -> None:
    """However often: a video of hours on machines that are there while they cost little."""
    deal, hand = Deal([Task(0, VIDEO, Path("a.mp4"), Path("out/a.mkv"))]), Hand(5)
    for _ in range(9):
        assert len(deal.more(hand, 1)) == 1
        assert deal.died(hand, Death("its machine is gone", TAKEN)) == []
    deal.more(hand, 1)
    assert deal.died(hand, Death("its process was killed", KILLED)) == []
    deal.more(hand, 1)
    ((_, row),) = deal.died(hand, Death("its process crashed", CRASHED))
    assert row.error == "tried 2 times by a worker that had nothing else: its process crashed"


def test_parts_of_rasters_come_last_and_alone() -> None:
    parts = [Task(at, RASTER, path=Path("map.tif"), target=Path("out/map.tif"), part=(at, 3)) for at in (1, 2, 3)]
    deal, hand = Deal([*parts, Task(9, IMAGE, Path("a.png"), Path("out/a.png"))]), Hand(5)
    order = []
    while deal.left:
        given = deal.more(hand, 1)
        assert len(given) == 1
        order += [task.index for task in given]
        deal.done(hand, given[0].index)
    assert order == [9, 1, 2, 3]
