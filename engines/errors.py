"""The ways a command fails that are not bugs of ours."""

from __future__ import annotations


class DeployError(Exception):
    """The user's input is at fault.  One line: what was got, what was expected, what to do."""

    exit_code = 2


class GateError(DeployError):
    """A result was computed but does not agree with its reference closely enough to be shipped."""

    exit_code = 3


class NotFiniteError(DeployError):
    """The engine's logits are NaN or infinite, so that there is no mask."""


class GpuLostError(DeployError):
    """The GPU's context is gone (a fault in a kernel, a reset): nothing more can run in this process."""

    exit_code = 1
