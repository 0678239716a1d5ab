"""On the path of a cluster's workers: what happens to a process or a GPU when it comes to a file of a certain name."""

import contextlib
import os
import signal
import sys
import time
from typing import Any


def _writes_for_long() -> None:
    """Row by row, and no window meanwhile."""
    with open(os.devnull, "wb", buffering=0) as file:
        for _ in range(12):
            file.write(b"row")
            time.sleep(0.5)


def _waits(gone: str) -> None:
    """Until that folder is; meanwhile it holds a file named after this process."""
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        os.close(os.open(os.path.join(gone, str(os.getpid())), os.O_CREAT | os.O_EXCL))
    while os.path.isdir(gone):
        time.sleep(0.05)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.rename" and os.fspath(arguments[1]).endswith(".slow.tif.parts/labels.vrt"):
        _writes_for_long()
    if event != "open" or not isinstance(arguments[0], str | os.PathLike):
        return
    name = os.path.basename(os.fspath(arguments[0]))
    if name == "kills.png":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "crashes.png":
        signal.raise_signal(signal.SIGSEGV)  # of this very thread, which goes no further
    if name == "stops.png":
        with contextlib.suppress(FileExistsError):  # the first that comes to it
            os.mkdir(f"{os.fspath(arguments[0])}.stopped")
            os.kill(os.getpid(), signal.SIGSTOP)
    if name == "waits.png":
        _waits(f"{os.fspath(arguments[0])}.until")
    if name == "two-contexts.png":
        from engines.tiling.host import HostDevice

        HostDevice.contexts = "2"
    if name == "loses.png":
        from engines.errors import GpuLostError

        share = os.environ.get("EDGESEG_SHARE")
        raise GpuLostError(f"gpu: an illegal memory access was encountered; cores/processes were {share}")


sys.addaudithook(_hook)
