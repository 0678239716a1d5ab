"""The workers of one run over a Ray cluster: an engine for each GPU, or for each group of cores.

The driver deals paths out and gathers rows; images are read, and masks written, where the engine is.  A worker that
dies is replaced, and what it had goes to others: a mask is whole or absent, so that nothing else has to be known.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from engines.contract import Log
from engines.errors import DeployError
from engines.fleet.deal import CRASHED, KILLED, MOST_TRIES, TAKEN, Deal, Death, Hand
from engines.fleet.watch import Watch
from engines.fleet.worker import Answer, FleetWorker, Order, Task, WorkerReady, crash_file
from engines.machine.share import MachineShare
from engines.report.rows import InputRow

_LOOK = 5.0  # seconds between looks for nodes that came or went
_MISSES = 3  # times, a second apart, that the head does not answer, until it is gone
_PATIENCE = 30.0  # seconds without any worker until it is said what is awaited
_WAIT = 1.0  # seconds for an answer, before it is looked around
_TRIES = MOST_TRIES + 1  # workers that die one after another without a row between, until their place is given up
_FATAL = re.compile(r"Fatal Python error: (.+)")  # how `faulthandler` begins

Tell = Callable[[int, InputRow], None]


@dataclass(frozen=True)
class _Node:
    id: str
    host: str
    cpus: int
    gpus: int

    @classmethod
    def of(cls, found: dict[str, Any]) -> _Node:
        has = found["Resources"]
        return cls(found["NodeID"], found["NodeManagerHostname"], int(has.get("CPU", 0)), int(has.get("GPU", 0)))


class _Place:
    """Where a worker is, or one in its stead.  call: what it was asked last and has not answered.

    deaths: one after another, without a row between.  why: the last one died, until there is another.  contexts: of its
    GPU, see `Device`.
    """

    def __init__(self, node: _Node) -> None:
        self.node = node
        self.actor: Any = None
        self.call: Any = None
        self.hand: Hand | None = None
        self.watch = Watch()
        self.where = node.host
        self.deaths = 0
        self.why = self.contexts = ""


class Cluster:
    """The workers of one run.  shown: what the user calls the cluster."""

    def __init__(self, ray: Any, log: Log, shown: str) -> None:
        self._ray, self._log, self._shown = ray, log, shown
        self._places: list[_Place] = []
        self._known: set[str] = set()
        self._looked = -_LOOK
        self._head, self._misses = ray.get_runtime_context().gcs_address, 0
        self._left: list[str] = []  # why, of workers that nobody replaced
        self.begun: float | None = None  # by time.perf_counter(): when the first worker was ready

    def start(self, order: Order, on_gpu: bool) -> int:
        """A worker for each GPU, or for each `order.threads` cores.  Returns how many.  Raises DeployError for none."""
        self._order, self._on_gpu = order, on_gpu
        self._remote = self._ray.remote(FleetWorker)
        self._look()
        if not self._places:
            wanted = "a GPU" if on_gpu else f"{max(1, order.threads)} CPU(s)"
            raise DeployError(f"{self._shown}: no node has {wanted}")
        return len(self._places)

    def run(self, tasks: Iterable[Task], tell: Tell, stall: float | None) -> None:
        """Until every task has a row.  stall: seconds without progress after which a worker is given up, or None.

        Raises DeployError where no worker ever could open the bundle, or the head is gone.
        """
        deal, patience = Deal(tasks), time.monotonic() + _PATIENCE
        while deal.left:
            self._look()
            for place in self._places:
                self._ask(place, deal)
            if not self._places:
                self._without_workers(deal, tell)
                return
            calls = {place.call: place for place in self._places if place.call is not None}
            if not calls:  # all are to be begun again once the head answers
                time.sleep(_WAIT)
                continue
            for call in self._ray.wait(list(calls), num_returns=1, timeout=_WAIT)[0]:
                self._answered(calls[call], deal, tell)
            for place in self._places:
                self._watch(place, deal, tell, stall)
            if self.begun is None and time.monotonic() > patience:
                self._log(
                    "waiting", f"for {len(self._places)} worker(s): their CPUs or GPUs are taken, or they are slow"
                )
                patience = float("inf")

    @property
    def contexts(self) -> dict[str, str]:
        """Those of each worker on a GPU."""
        return {place.where: place.contexts for place in self._places if place.contexts}

    @property
    def headless(self) -> bool:
        """Whether the head is gone, without which Ray does not end in good order."""
        return self._misses >= _MISSES

    def end(self) -> None:
        for place in self._places:
            self._kill(place)

    def _look(self) -> None:
        """Workers on nodes that came, and for those that died; none any more on nodes that left.

        Raises DeployError where the head is gone: Ray would wait a minute for it, and then end this process.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        self._misses = 0 if unanswered(self._head) is None else self._misses + 1
        if self._misses:
            self._looked += 1.0 - _LOOK
            if self.headless:
                raise DeployError(
                    f"{self._shown}: its head at {self._head} does not answer any more; what is written stays, and "
                    "the same command with --skip-existing goes on"
                )
            return
        nodes = [_Node.of(node) for node in self._ray.nodes() if node["Alive"]]
        for node in nodes:
            if node.id not in self._known:
                self._known.add(node.id)
                places = node.gpus if self._on_gpu else node.cpus // (self._order.threads or node.cpus or 1)
                self._places += [_Place(node) for _ in range(places)]
        alive = {node.id for node in nodes}
        for place in [place for place in self._places if place.actor is None]:
            if place.node.id in alive:
                self._begin(place)
            else:
                self._leave(place, place.why)

    def _begin(self, place: _Place) -> None:
        node, strategies = place.node, self._ray.util.scheduling_strategies
        each = node.cpus // max(1, node.gpus) if self._on_gpu else self._order.threads or node.cpus
        there = strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
        options = {"num_cpus": each, "num_gpus": int(self._on_gpu), "max_restarts": 0, "scheduling_strategy": there}
        if place.why:
            self._log("warning", f"worker {place.where}: {place.why}; another takes its place")
        beside = sum(other.node.host == node.host for other in self._places)
        place.actor = self._remote.options(**options).remote(self._order, MachineShare(max(1, each), beside))
        place.call, place.hand, place.where = place.actor.open.remote(), None, node.host

    def _ask(self, place: _Place, deal: Deal) -> None:
        """For rows, with what it is to do beside."""
        if place.hand is not None and place.call is None:
            idle = not place.hand.tasks
            tasks = deal.more(place.hand, len(self._places))
            if place.hand.tasks:
                place.call = place.actor.exchange.remote([task.absolute() for task in tasks])
                place.watch.asked(afresh=idle)

    def _answered(self, place: _Place, deal: Deal, tell: Tell) -> None:
        errors, call = self._ray.exceptions, place.call
        place.call = None
        try:
            found = self._ray.get(call)
        except errors.RayTaskError:
            raise  # a fault of ours, with the worker's own traceback
        except errors.RayError as error:
            self._died(place, deal, self._cause(place, error), tell)
            return
        if isinstance(found, WorkerReady):
            self._opened(place, found)
            return
        assert isinstance(found, Answer)
        assert place.hand is not None
        place.watch.answered(found.progress, bool(found.rows))
        place.contexts = found.contexts or place.contexts
        lost = None
        for index, row in found.rows:
            if row.lost:
                lost = row.error
            else:
                deal.done(place.hand, index)
                place.deaths = 0
                tell(index, replace(row, worker=place.where))
        if lost is not None:
            self._died(place, deal, Death(lost, CRASHED, lost=True), tell)

    def _opened(self, place: _Place, found: WorkerReady) -> None:
        place.where = found.where
        for step, text in found.said:
            self._log(step, f"{found.where}: {text}")
        if found.error is None:
            self.begun = self.begun or time.perf_counter()
            place.hand = Hand(found.room)
        else:
            self._leave(place, found.error)

    def _watch(self, place: _Place, deal: Deal, tell: Tell, stall: float | None) -> None:
        """Say where nothing happens, and end it where that was asked for."""
        if place.hand is None or not place.hand.tasks or place.call is None:
            return
        if stall is not None and place.watch.quiet > stall:
            self._died(place, deal, Death(f"no progress for {stall:g} s (--stall-timeout)", CRASHED), tell)
        elif said := place.watch.said():
            one, *more = place.hand.tasks.values()
            others = f" and {len(more)} more" if more else ""
            self._log("waiting", f"for worker {place.where}: {said}; it has {one.path}{others}")

    def _died(self, place: _Place, deal: Deal, death: Death, tell: Tell) -> None:
        """What it had goes to others; `_look` begins another, where its node is alive."""
        self._kill(place)
        place.deaths, place.why = place.deaths + 1, death.why
        begun = place.hand is not None
        if place.hand is not None:
            for index, row in deal.died(place.hand, death):
                tell(index, replace(row, worker=place.where))
                place.deaths = 0  # it was the task
            place.hand = None
        if place.deaths >= _TRIES or (death.hopeless and not begun):
            self._leave(place, death.why)
        self._looked = -_LOOK

    def _cause(self, place: _Place, error: Exception) -> Death:
        """What Ray says on many lines, on one."""
        errors, text = self._ray.exceptions, str(error)
        gone = errors.ActorUnavailableError, errors.ActorUnschedulableError
        # One on a node that lives is known to be dead before it is "unavailable".
        if isinstance(error, gone) or getattr(error, "preempted", False) or "node has died" in text:
            return Death("its machine is gone, or does not answer", TAKEN)
        if isinstance(error, errors.OutOfMemoryError):
            return Death("killed by Ray: its machine was short of memory", KILLED)
        if found := re.findall(r"\w*(?:Error|Exception): .+", text):
            needs = "each node needs edgeseg, in the version that is here, and the bundle's SDK"
            return Death(f"{found[-1][:300]}; {needs}", KILLED, hopeless=True)
        with suppress(OSError):
            if fatal := _FATAL.match(crash_file(self._order, place.where).read_text(errors="replace")):
                return Death(f"its process crashed: {fatal[1]}", CRASHED)
        return Death("its process was killed, for want of memory or from outside", KILLED)

    def _leave(self, place: _Place, why: str) -> None:
        """Without a worker here."""
        self._kill(place)
        self._places.remove(place)
        self._left.append(why)
        self._log("warning", f"worker {place.where}: not used: {why}")

    def _kill(self, place: _Place) -> None:
        if place.actor is not None:
            self._ray.kill(place.actor)
        place.actor = place.call = None

    def _without_workers(self, deal: Deal, tell: Tell) -> None:
        if self.begun is None:
            raise DeployError(f"{self._shown}: no worker is left: {self._left[0]}")
        for index, row in deal.rest(f"no worker is left: {self._left[-1]}"):
            tell(index, row)


def unanswered(address: str) -> Exception | None:
    """Why nothing takes a connection at HOST:PORT; None where something does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        return error
    return None
