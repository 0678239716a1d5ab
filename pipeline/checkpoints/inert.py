"""What trainers leave in a checkpoint beside the weights, read without its classes: each name stands for nothing.

PyTorch's restricted unpickler builds tensors and plain containers and refuses every other name.  The names here are
those that mmengine, mmcv and Lightning write beside their weights: logs, scores, paths.  Each is answered with
`Inert`, which takes whatever it is given and keeps none of it, so that neither the class nor the function of that name
is ever looked up, let alone called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NAMES = (
    "mmengine.logging.history_buffer.HistoryBuffer",  # the message hub of every mmengine Runner, and below it:
    "__builtin__.getattr", "builtins.getattr",  # of HistoryBuffer.min, as pickle writes a function inside of a class
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",  # scores, as mmcv's best_*.pth
    "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict", "addict.addict.Dict",
    "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)  # fmt: skip


class Inert:
    """Something in a checkpoint that inference does not need, and of which nothing is kept."""

    def __new__(cls, *_: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass


STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(Inert, name) for name in NAMES]
