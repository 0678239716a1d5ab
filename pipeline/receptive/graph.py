"""A network as a graph whose outputs are the maps that its fields are told of."""

from __future__ import annotations

import onnx_ir as ir
from torch import Tensor, nn

from pipeline.graph.export import trace, translate
from pipeline.graph.proto import settle
from pipeline.receptive.units import OUTPUT, Tap, tapped


class _Tapped(nn.Module):
    def __init__(self, module: nn.Module, taps: tuple[Tap, ...]) -> None:
        super().__init__()
        self.module, self.taps = module, taps

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        with tapped(self.module, self.taps) as caught:
            output: Tensor = self.module(image)
        return (*(caught[tap.name] for tap in self.taps), output)


def tapped_graph(
    module: nn.Module, taps: tuple[Tap, ...], window: tuple[int, int], channels: int = 3
) -> ir.Model:  # fmt: skip
    """`module` at (1, channels, *window), with an output for each tap, named like it, and then its own.

    Every value has its static shape.  Raises DeployError.
    """
    # A map that is the output of two taps at once would be one output: each gets its own name all the same.
    model = translate(trace(_Tapped(module, taps), window, channels), [*(tap.name for tap in taps), OUTPUT])
    settle(model)
    return model
