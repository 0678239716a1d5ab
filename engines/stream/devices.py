"""One folder over all GPUs of a machine: a process each, images dealt out, one report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from engines.errors import DeployError
from engines.machine.limits import cores
from engines.machine.share import MachineShare


def on_every_gpu(command: Sequence[str], rest: Sequence[str], count: int) -> list[Any]:
    """What `command` prints as JSON, once for each of `count` GPUs, all at a time, with ``--device I`` and its shard.

    Of an option that is given twice the last counts.  rest: what stands behind the options.

    They divide the cores and the memory that this process has.  Only the first shows its progress.  What they say on
    stderr is shown.  Ctrl-C reaches them as it reaches this process.  Raises DeployError naming the GPU whose process
    ended without a result, after all have ended.
    """
    processes, share = [], MachineShare.of(cores(), count).environment()
    for index in range(count):
        quiet = {"TQDM_DISABLE": "1"} if index else {}
        processes.append(
            subprocess.Popen(  # noqa: S603  our own command line
                [*command, "--json", "--device", str(index), "--shard", f"{index + 1}/{count}", *rest],
                stdout=subprocess.PIPE, env={**os.environ, **share, **quiet},
            )
        )  # fmt: skip
    try:
        printed = [process.communicate()[0] for process in processes]
    except BaseException:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            with process:
                if process.stdout is not None and not process.stdout.closed:
                    process.stdout.read()  # else one that stops in good order would wait for its report to be taken
        raise
    results = []
    for index, (process, text) in enumerate(zip(processes, printed, strict=True)):
        try:
            results.append(json.loads(text))
        except ValueError as error:
            raise DeployError(
                f"GPU {index}: its process ended with exit code {process.returncode} and no report; "
                f"run it alone to see why: --device {index}"
            ) from error
    return results


def own_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line `words` of this program as `on_every_gpu` takes it: command and rest."""
    cut = words.index("--") if "--" in words else len(words)
    return [sys.executable, os.path.abspath(sys.argv[0]), *words[:cut]], list(words[cut:])
