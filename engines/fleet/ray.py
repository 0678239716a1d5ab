"""One run over a Ray cluster: an engine for each GPU, or for each group of cores.

The driver deals paths out and gathers rows; images are read, and masks written, where the engine is.  A worker that
dies is replaced, and what it had goes to others: a mask is whole or absent, so that nothing else has to be known.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.contract import Log
from engines.errors import DeployError
from engines.fleet.deal import Deal, Hand
from engines.fleet.worker import FleetWorker, Order, Task, WorkerReady
from engines.guard.ledger import temporary_folder
from engines.machine.limits import cores
from engines.machine.share import MachineShare
from engines.report.rows import InputRow

LOCAL = "local"
# Ray reads them when it is imported: no statistics are sent, no word of its own on standard output (the death of a
# worker is said there otherwise, whatever else is asked for), and CUDA_VISIBLE_DEVICES stays where no GPU is asked for.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "1", "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}  # fmt: skip
_INTERRUPTED = 130  # exit code
_STORE = 80 * 2**20  # bytes; the least that Ray takes: rows are small
_LOOK = 5.0  # seconds between looks for nodes that came or went
_MISSES = 3  # times, a second apart, that the head does not answer, until it is gone
_PATIENCE = 30.0  # seconds without any worker until it is said what is awaited
_KILLED = "its process was killed, or crashed"
_TRIES = 3  # workers that die one after another without a row between, until their place is given up


@contextmanager
def cluster(address: str, log: Log) -> Iterator[Cluster]:
    """Ray, connected: to one of its own on this machine's cores for `LOCAL`.  Raises DeployError."""
    os.environ.update(_QUIET)
    try:
        import ray
    except ImportError as error:
        raise DeployError(f"--ray: {error}; install it: pip install 'edgeseg[ray]'") from error
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        own: dict[str, Any] = {}
        if address == LOCAL:
            folder = stack.enter_context(temporary_folder(sockets=True))
            stack.callback(_end_all, folder)
            own = {
                "num_cpus": cores(), "include_dashboard": False, "object_store_memory": _STORE,
                "_temp_dir": str(folder), "_node_ip_address": "127.0.0.1",
            }  # fmt: skip
        _reach(address)
        beginning = stack.enter_context(ExitStack())
        beginning.callback(ray.shutdown)  # also of what a beginning that is broken off has started
        try:
            ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False, **own)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise DeployError(f"--ray {address}: {' '.join(str(error).split())[:300]}") from error
        except (KeyboardInterrupt, SystemExit):  # which Ray makes of SIGTERM
            atexit.register(_leave, _INTERRUPTED)  # half begun, its threads crash in a process that ends by itself
            raise KeyboardInterrupt from None
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)  # Ray has put one of its own there
        found = Cluster(ray, log, f"--ray {address}")
        beginning.pop_all()
        stack.callback(found.end)
        yield found


def _end_all(folder: Path) -> None:
    """Kill what a cluster of our own leaves: its agents outlive it where it was stopped while it began.

    They are known by their logs, which lie in `folder`: their command lines and environments they overwrite.
    """
    left = True
    while left:  # one that is killed may have begun another meanwhile
        left = False
        for process in Path("/proc").glob("[0-9]*"):  # none but on Linux
            with suppress(OSError):
                logs = any(os.readlink(file).startswith(str(folder)) for file in (process / "fd").iterdir())
                if logs and int(process.name) != os.getpid():
                    os.kill(int(process.name), signal.SIGKILL)
                    left = True


def _reach(address: str) -> None:
    """Ray itself tries for a minute, in many words.  Raises DeployError."""
    if address.rpartition(":")[2].isdigit() and (error := _unanswered(address)) is not None:
        raise DeployError(f"--ray {address}: nothing answers there: {error}; start Ray: ray start --head")


def _unanswered(address: str) -> Exception | None:
    """Why nothing takes a connection at HOST:PORT; None where something does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        return error
    return None


@dataclass(frozen=True)
class _Node:
    id: str
    host: str
    cpus: int
    gpus: int


@dataclass
class _Place:
    """Where a worker is, or one in its stead.  call: what it was asked last and has not answered.

    deaths: one after another, without a row between.
    """

    node: _Node
    actor: Any = None
    call: Any = None
    hand: Hand | None = None
    where: str = ""
    deaths: int = 0


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

    def run(self, tasks: Iterable[Task], tell: Callable[[int, InputRow], None]) -> None:
        """Until every task has a row.  Raises DeployError where no worker ever could open the bundle."""
        deal, patience = Deal(tasks), time.monotonic() + _PATIENCE
        while deal.left:
            self._look()
            for place in self._places:
                self._ask(place, deal)
            calls = {place.call: place for place in self._places if place.call is not None}
            if not calls:  # a worker that has nothing to do would have been given what is left
                self._without_workers(deal, tell)
                return
            for call in self._ray.wait(list(calls), num_returns=1, timeout=1.0)[0]:
                self._answered(calls[call], deal, tell)
            if self.begun is None and time.monotonic() > patience:
                self._log(
                    "waiting", f"for {len(self._places)} worker(s): their CPUs or GPUs are taken, or they are slow"
                )
                patience = float("inf")

    def end(self) -> None:
        """The workers, and the connection."""
        if self._misses < _MISSES:
            for place in self._places:
                self._kill(place)
            self._ray.shutdown()
        else:  # it would wait for the head a minute; and its threads crash in a process that ends without it
            atexit.register(_leave, DeployError.exit_code)

    def _look(self) -> None:
        """Workers on nodes that came; those of nodes that left have died by themselves.

        Raises DeployError where the head is gone: Ray would wait a minute for it, and then end this process.
        """
        now, new = time.monotonic(), list[_Place]()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        self._misses = 0 if _unanswered(self._head) is None else self._misses + 1
        if self._misses:
            self._looked += 1.0 - _LOOK
            if self._misses == _MISSES:
                raise DeployError(
                    f"{self._shown}: its head at {self._head} does not answer any more; what is written stays, and "
                    "the same command with --skip-existing goes on"
                )
            return
        for node in map(_node, filter(lambda node: node["Alive"], self._ray.nodes())):
            if node.id not in self._known:
                self._known.add(node.id)
                places = node.gpus if self._on_gpu else node.cpus // (self._order.threads or node.cpus or 1)
                new += [_Place(node) for _ in range(places)]
        self._places += new
        for place in new:
            self._begin(place)

    def _begin(self, place: _Place) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = place.node
        each = node.cpus // max(1, node.gpus) if self._on_gpu else self._order.threads or node.cpus
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        options = {"num_cpus": each, "num_gpus": int(self._on_gpu), "max_restarts": 0, "scheduling_strategy": there}
        beside = sum(other.node.host == node.host for other in self._places)
        place.actor = self._remote.options(**options).remote(self._order, MachineShare(max(1, each), beside))
        place.call, place.hand = place.actor.open.remote(), None

    def _ask(self, place: _Place, deal: Deal) -> None:
        """For rows, with what it is to do beside."""
        if place.hand is not None and place.call is None:
            tasks = deal.more(place.hand, len(self._places))
            if place.hand.tasks:
                place.call = place.actor.exchange.remote(tasks)

    def _answered(self, place: _Place, deal: Deal, tell: Callable[[int, InputRow], None]) -> None:
        errors, call = self._ray.exceptions, place.call
        place.call = None
        try:
            found = self._ray.get(call)
        except errors.RayTaskError:
            raise  # a fault of ours, with the worker's own traceback
        except errors.RayError as error:
            self._died(place, deal, _why(error), tell)
            return
        if isinstance(found, WorkerReady):
            self._opened(place, found)
            return
        assert place.hand is not None
        lost = None
        for index, row in found:
            if row.lost:
                lost = row.error
            else:
                deal.done(place.hand, index)
                place.deaths = 0
                tell(index, replace(row, worker=place.where))
        if lost is not None:
            self._died(place, deal, lost, tell, lost=True)

    def _opened(self, place: _Place, found: WorkerReady) -> None:
        place.where = found.where
        for step, text in found.said:
            self._log(step, f"{found.where}: {text}")
        if found.error is None:
            self.begun = self.begun or time.perf_counter()
            place.hand = Hand(found.room)
        else:
            self._leave(place, found.error)

    def _died(
        self, place: _Place, deal: Deal, why: str, tell: Callable[[int, InputRow], None], *, lost: bool = False
    ) -> None:  # fmt: skip
        self._kill(place)
        place.deaths += 1
        if place.hand is not None:
            for index, row in deal.died(place.hand, why, lost=lost):
                tell(index, replace(row, worker=place.where))
                place.deaths = 0  # it was the task
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        hopeless = place.hand is None and why != _KILLED  # it would not begin the next time either
        if place.node.id in alive and place.deaths < _TRIES and not hopeless:
            self._log("warning", f"worker {place.where or place.node.host}: {why}; another takes its place")
            self._begin(place)
        else:
            self._leave(place, why)

    def _leave(self, place: _Place, why: str) -> None:
        """Without a worker here."""
        self._kill(place)
        self._places.remove(place)
        self._left.append(why)
        self._log("warning", f"worker {place.where or place.node.host}: not used: {why}")

    def _kill(self, place: _Place) -> None:
        if place.actor is not None:
            self._ray.kill(place.actor)
        place.actor = place.call = None

    def _without_workers(self, deal: Deal, tell: Callable[[int, InputRow], None]) -> None:
        if self.begun is None:
            raise DeployError(f"{self._shown}: no worker is left: {self._left[0]}")
        for index, row in deal.rest(f"no worker is left: {self._left[-1]}"):
            tell(index, row)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _node(found: dict[str, Any]) -> _Node:
    has = found["Resources"]
    return _Node(found["NodeID"], found["NodeManagerHostname"], int(has.get("CPU", 0)), int(has.get("GPU", 0)))


def _why(error: Exception) -> str:
    """What Ray says of a worker's end on many lines, on one."""
    found = re.findall(r"\w*(?:Error|Exception): .+", str(error))
    if not found:
        return _KILLED
    return f"{found[-1][:300]}; each node needs edgeseg, in the version that is here, and the bundle's SDK"
