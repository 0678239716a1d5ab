"""One window of noise through a module that this project did not write: what it returns, and at which stride."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.errors import DeployError
from engines.spec import MAX_BANDS, MAX_CLASSES


def channels_of(module: nn.Module, window: tuple[int, int], said: int | None, who: str) -> int:
    """How many channels a module takes: `said`, where it is, else 3, else what its first convolution was made for.

    Raises DeployError where it takes none of these.
    """
    first = next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), 3)
    if said is not None or first == 3 or not 1 <= first <= MAX_BANDS:
        return said or 3
    try:
        probe(module, window, who)
    except DeployError:
        probe(module, window, who, first)
        return first
    return 3


def probe(module: nn.Module, window: tuple[int, int], who: str, channels: int = 3) -> Tensor:
    """The output for a window of noise, by which logits can be told from probabilities.  Raises DeployError."""
    height, width = window
    noise = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            output: Tensor = module(noise)
            return output
    except (RuntimeError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise DeployError(
            f"{who}: the module failed on (1, {channels}, {height}, {width}) float32: {line}; "
            "expected it to take this window, choose another with --tile"
        ) from error


def passed_on(bands: int) -> str:
    """In words: of bands nobody knows the mean, so they become 0..1."""
    return f"{bands} band(s), passed on as 0..1; --mean and --std of the training say better"


def measure(logits: Tensor, window: tuple[int, int], who: str) -> tuple[int, int]:
    """K and the logits' stride, rounded where they do not divide the window.  Raises DeployError."""
    height, width = window
    shape = tuple(logits.shape)
    if len(shape) == 4 and shape[0] == 1 and 1 <= shape[1] <= MAX_CLASSES and min(shape[2:]) > 0:
        rows, columns = shape[2:]
        border = height - rows == width - columns  # of convolutions that are not padded
        if rows <= height and columns <= width and (border or covers_evenly((rows, columns), window)):
            return shape[1], max(1, round(height / rows))
    raise DeployError(
        f"{who}: got logits {shape} for a {height}x{width} window, expected (1, K, {height}/s, {width}/s) with "
        f"1 <= K <= {MAX_CLASSES} and one stride s"
    )


def covers_evenly(logits: tuple[int, int], window: tuple[int, int]) -> bool:
    """Whether logits of that size have one stride along both axes, up to rounding where it divides no side."""
    stride = max(window[0] / logits[0], window[1] / logits[1])
    return all(abs(count - side / stride) < 1 for count, side in zip(logits, window, strict=True))
