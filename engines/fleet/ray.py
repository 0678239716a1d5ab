"""Ray, imported and connected, and left in good order; `engines.fleet.workers` does the work."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from engines.contract import Log
from engines.errors import DeployError
from engines.fleet.workers import Cluster, unanswered
from engines.guard.child import end_at_once
from engines.guard.ledger import temporary_folder
from engines.guard.stop import nothing_swallowed
from engines.machine.limits import cores

LOCAL = "local"
# Ray reads them when it is imported: no statistics are sent, no word of its own on standard output (the death of a
# worker is said there otherwise, whatever else is asked for), and CUDA_VISIBLE_DEVICES stays where no GPU is asked for.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "1", "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}  # fmt: skip
_STORE = 80 * 2**20  # bytes; the least that Ray takes: rows are small


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
            with nothing_swallowed():
                ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False, **own)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise DeployError(f"--ray {address}: {' '.join(str(error).split())[:300]}") from error
        except (KeyboardInterrupt, SystemExit):  # which Ray makes of SIGTERM
            end_at_once()  # half begun, its threads crash in a process that ends by itself
            raise KeyboardInterrupt from None
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)  # Ray has put one of its own there
        found = Cluster(ray, log, f"--ray {address}")
        beginning.pop_all()
        stack.callback(_end, ray, found)
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
    if address.rpartition(":")[2].isdigit() and (error := unanswered(address)) is not None:
        raise DeployError(f"--ray {address}: nothing answers there: {error}; start Ray: ray start --head")


def _end(ray: Any, workers: Cluster) -> None:
    """The workers, and the connection."""
    if not workers.headless:
        workers.end()
        ray.shutdown()
    else:  # it would wait for the head a minute; and its threads crash in a process that ends without it
        end_at_once()
