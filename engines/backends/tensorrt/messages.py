"""TensorRT's messages, collected, and what they mean for the one who reads them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from engines.backends.tensorrt.sdk import name_of
from engines.errors import DeployError

_BAD = ("ERROR", "INTERNAL_ERROR")
_NO_IMPLEMENTATION = re.compile(
    r"ould not find any implementation for node (?:\{([^}]*)\}|(.+?)(?: due to |\. |\.\)?$|$))"
)
_NO_KERNELS = re.compile(r"GPU SM \d+ is not supported|Unsupported SM", re.I)
_MEMORY = re.compile(r"out of memory|OutOfMemory|insufficient memory|MEM_ALLOC|FAILED_ALLOCATION|std::bad_alloc", re.I)
_KEPT = 200  # messages


@cache
def logger_of(sdk: Any) -> Any:
    """An ILogger that keeps warnings and errors in ``messages``, (severity, text), instead of printing them.

    One for the process: TensorRT keeps the first that it was given while anything made with it lives, and ignores later
    ones.  What begins something new clears the messages.
    """

    class Logger(sdk.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            sdk.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []
            self.listeners: dict[int, Callable[[str], None]] = {}  # by thread

        def log(self, severity: Any, text: str) -> None:
            kind = name_of(severity)
            listener = self.listeners.get(threading.get_ident())
            if listener is not None:
                listener(text)
            if kind in (*_BAD, "WARNING"):
                self.messages.append((kind, text))
                del self.messages[:-_KEPT]

    return Logger()


@contextmanager
def listening(logger: Any, listener: Callable[[str], None]) -> Iterator[None]:
    """Everything that is logged from this thread, verbose messages too, goes to `listener` as well.

    TensorRT tells what it made of a network from the thread that builds it, so that two builds at once do not mix.
    """
    thread = threading.get_ident()
    logger.listeners[thread] = listener
    try:
        yield
    finally:
        del logger.listeners[thread]


def errors_of(logger: Any) -> list[str]:
    return [one_line(text) for kind, text in logger.messages if kind in _BAD]


def warnings_of(logger: Any) -> list[str]:
    """Each once, in their order."""
    return list(dict.fromkeys(one_line(text) for kind, text in logger.messages if kind == "WARNING"))


def parse_error(title: str, model: str, parser: Any, logger: Any) -> DeployError:
    """Of the ONNX parser: which node, of which type, why, and what to do."""
    if not parser.num_errors:
        return DeployError(f"{title}: cannot read {model}: {_first(errors_of(logger))}; build the bundle again")
    error = parser.get_error(0)
    reason = one_line(error.desc())
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    # 8.6 knows the node's number alone; its name and operator came with 10.
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    name = error.node_name() if hasattr(error, "node_name") else ""
    where = " ".join(part for part in (operator, f"node {name or f'number {error.node()}'}") if part)
    return DeployError(
        f"{title}: cannot take {model}: {where}: {reason}{more}; replace this operator in the model, or use a TensorRT "
        "that has it (or --backend openvino)"
    )


def build_error(title: str, logger: Any, workspace: int | None) -> DeployError:
    """Of a builder that returned nothing."""
    errors = errors_of(logger)
    limit = "" if workspace is None else f" (workspace limit {workspace / 2**20:.0f} MiB)"
    for text in errors:
        node = _NO_IMPLEMENTATION.search(text)
        if node:
            name = node.group(1) or node.group(2)
            return DeployError(
                f"{title}: no implementation for node {name} fits{limit}; that is usually too little memory, not a "
                "missing operator: give a larger --workspace, close programs that use the GPU, or take a smaller "
                "--tile or --batch"
            )
    for text in errors:
        if out_of_memory([text]):
            return DeployError(
                f"{title}: out of memory while building{limit}: {text}; close programs that use the GPU, give a "
                "smaller --workspace, or take a smaller --tile or --batch"
            )
    return no_kernels(title, errors) or DeployError(
        f"{title}: cannot build: {_first(errors)}; try another --precision, and report this model"
    )


def no_kernels(title: str, errors: Sequence[str]) -> DeployError | None:
    """What pip's TensorRT says on a Jetson, and an old one on a new GPU: the answer is another package."""
    text = next((text for text in errors if _NO_KERNELS.search(text)), None)
    if text is None:
        return None
    return DeployError(
        f"{title}: it has no kernels for this GPU ({text}); a Jetson needs the TensorRT of its JetPack (apt, not pip), "
        "any other GPU a release that lists it"
    )


def out_of_memory(errors: Sequence[str]) -> bool:
    return any(_MEMORY.search(text) for text in errors)


def load_error(title: str, doing: str, logger: Any) -> DeployError:
    """Of a runtime that returned nothing."""
    errors = errors_of(logger)
    if out_of_memory(errors):
        return DeployError(
            f"{title}: no GPU memory left while {doing}: {errors[0]}; close other programs that use the GPU, or build "
            "with a smaller --tile or --batch"
        )
    return no_kernels(title, errors) or DeployError(
        f"{title}: cannot go on {doing}: {_first(errors)}; build the bundle again here"
    )


def one_line(text: str) -> str:
    """At most 400 characters of it."""
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:399]}…"


def _first(errors: Sequence[str]) -> str:
    """The root; what comes after it is what it led to."""
    return errors[0] if errors else "it gave no reason"
