"""Which task goes to which worker: they ask for more as they finish, and what a dead one had goes to others."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from engines.errors import DeployError, GpuLostError
from engines.fleet.worker import Task
from engines.report.rows import IMAGE, InputRow

# Deaths of workers that had nothing but the one task, until that is to blame: of a kind that a task makes, and of one
# that it may have made, or another program that wanted the memory.  None: it had no part in it.
CRASHED, KILLED, TAKEN = 2, 3, None
MOST_TRIES = max(CRASHED, KILLED)


@dataclass(frozen=True)
class Death:
    """Of a worker.  tries: `CRASHED`, `KILLED` or `TAKEN`.  lost: its GPU was.  hopeless: the next would die likewise,
    if this one never began."""

    why: str
    tries: int | None
    lost: bool = False
    hopeless: bool = False


@dataclass
class Hand:
    """What one worker has to do.  room: tasks that it has use for at once."""

    room: int
    tasks: dict[int, Task] = field(default_factory=dict)


class Deal:
    """Tasks not yet done, and how they are dealt out.

    Images go out as many at a time as a worker has use for, fewer where few are left.  Videos, parts of rasters, and
    what a worker died with, go to a worker that has nothing else: so is found which of them killed it.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._many: deque[Task] = deque()
        self._alone: deque[Task] = deque()
        for task in tasks:
            (self._many if task.kind == IMAGE else self._alone).append(task)
        self._deaths: Counter[int] = Counter()
        self.left = len(self._many) + len(self._alone)

    def more(self, hand: Hand, workers: int) -> list[Task]:
        """What a worker is to do beside what it has.  workers: that share what is left."""
        if self._many:
            room = min(hand.room, max(2, 1 + len(self._many) // workers)) - len(hand.tasks)
            new = [self._many.popleft() for _ in range(min(room, len(self._many)))]
        else:
            new = [self._alone.popleft()] if self._alone and not hand.tasks else []
        hand.tasks |= {task.index: task for task in new}
        return new

    def done(self, hand: Hand, index: int) -> Task:
        self.left -= 1
        return hand.tasks.pop(index)

    def died(self, hand: Hand, death: Death) -> list[tuple[int, InputRow]]:
        """Deal out again what the worker had.  Returns rows of tasks that are not tried once more."""
        tasks, hand.tasks = list(hand.tasks.values()), {}
        ended: list[Task] = []
        if len(tasks) == 1 and death.tries is not None:
            self._deaths[tasks[0].index] += 1
            ended = tasks if self._deaths[tasks[0].index] >= death.tries else []
        self._alone.extend(task for task in tasks if task not in ended)
        count = self._deaths[ended[0].index] if ended else 0
        return self._failed(ended, f"tried {count} times by a worker that had nothing else: {death.why}", death.lost)

    def rest(self, why: str) -> list[tuple[int, InputRow]]:
        """Rows of what nobody is left to do."""
        tasks = [*self._many, *self._alone]
        self._many.clear()
        self._alone.clear()
        return self._failed(tasks, why, lost=False)

    def _failed(self, tasks: list[Task], why: str, lost: bool) -> list[tuple[int, InputRow]]:
        self.left -= len(tasks)
        return [(task.index, task.failed(GpuLostError(why) if lost else DeployError(why))) for task in tasks]
