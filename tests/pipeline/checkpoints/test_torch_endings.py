"""A user's module that ends in probabilities or labels: its logits are found, and the module is what proves them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import DeployError, GateError
from engines.tiling.core import labels_of
from pipeline.checkpoints.sources import SourceOptions, TorchSource, load_source
from pipeline.graph.onnx_graph import run_onnx

WINDOW = (32, 48)


class Network(nn.Module):
    """Two convolutions at half the resolution, and an ending."""

    def __init__(self, ending: Callable[[Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1))
        self.ending = ending

    def forward(self, x: Tensor) -> object:
        return self.ending(3 * self.layers(x))


def _twice(x: Tensor, mode: str = "bilinear") -> Tensor:
    return F.interpolate(x, scale_factor=2, mode=mode)


PROBABILITIES: dict[str, Callable[[Tensor], object]] = {
    "softmax": lambda x: x.softmax(1),
    "softmax_module": nn.Softmax(dim=1),
    "softmax_counted_back": lambda x: {"logits": torch.softmax(x, -3)},
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "softmax_resized": lambda x: _twice(x.softmax(1)),
}
LABELS: dict[str, Callable[[Tensor], object]] = {
    "argmax": lambda x: x.argmax(1),
    "argmax_kept_as_float": lambda x: torch.argmax(x, dim=1, keepdim=True).float(),
    "argmax_squeezed": lambda x: x.argmax(1, keepdim=True).squeeze(1).to(torch.uint8),
    "largest_of_softmax": lambda x: x.softmax(1).max(1)[1],
    "argmax_of_resized": lambda x: _twice(x.softmax(1)).argmax(1),
}
ONE: dict[str, Callable[[Tensor], object]] = {
    "sigmoid": lambda x: x[:, :1].sigmoid(),
    "sigmoid_squeezed": lambda x: x[:, :1].sigmoid().squeeze(1),
    "sigmoid_resized": lambda x: _twice(x[:, :1].sigmoid()),
}
REFUSED: dict[str, Callable[[Tensor], object]] = {
    "labels_resized": lambda x: _twice(x.argmax(1, keepdim=True).float(), "nearest"),
    "several_comparisons": lambda x: (x.sigmoid() > 0.5).float(),
    "argmax_over_rows": lambda x: x.argmax(2, keepdim=True).float(),
}
ENDINGS = {**PROBABILITIES, **LABELS, **ONE, **REFUSED}


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """A factory for every ending, as a user would name it on the command line."""
    if name in ENDINGS:
        return lambda: Network(ENDINGS[name])
    if name == "above":
        return lambda: Network(lambda x: (x[:, :1].sigmoid() > 0.4).float())
    if name == "sigmoids":
        return lambda: Network(torch.sigmoid)
    raise AttributeError(name)


def _load(name: str) -> tuple[TorchSource, Tensor, np.ndarray]:
    """The source, and for one window what the module says and the source's logits."""
    source = load_source(f"{__name__}:{name}", WINDOW, SourceOptions())
    assert isinstance(source, TorchSource)
    window = np.random.default_rng(0).standard_normal((1, 3, *WINDOW), dtype=np.float32)
    with torch.inference_mode():
        said = __getattr__(name)()(torch.from_numpy(window))
    logits = source.logits([window])
    graph, _ = source.export()
    assert [step.rule for step in graph.history[:-1]] == list(source.remarks)
    np.testing.assert_allclose(run_onnx(graph, [window]), logits, atol=2e-5)
    assert not {"ArgMax", "Softmax", "LogSoftmax", "Sigmoid"} & {n.op_type for n in graph.model.graph} or "res" in name
    return source, next(iter(said.values())) if isinstance(said, dict) else said, logits


@pytest.mark.parametrize("name", PROBABILITIES)
def test_the_softmax_of_the_logits_is_what_the_module_says(name: str) -> None:
    source, said, logits = _load(name)
    expected = said.exp() if name == "log_softmax" else said
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1), expected, atol=2e-6)
    assert len(source.remarks) == 1
    assert source.spec.channels == 4
    assert source.spec.logits_stride == (1 if "resized" in name else 2)


@pytest.mark.parametrize("name", LABELS)
def test_the_largest_logit_is_the_label_that_the_module_says(name: str) -> None:
    source, said, logits = _load(name)
    assert np.array_equal(logits.argmax(1).reshape(-1), said.numpy().astype(int).reshape(-1))
    assert source.remarks[0].startswith("ending: argmax cut")
    assert source.spec.channels == 4


@pytest.mark.parametrize("name", ONE)
def test_one_sigmoid_is_a_network_of_two_classes(name: str) -> None:
    source, said, logits = _load(name)
    np.testing.assert_allclose(torch.from_numpy(logits).sigmoid().reshape(said.shape), said, atol=2e-6)
    assert (source.spec.classes, source.spec.threshold) == (("background", "foreground"), 0.5)


def test_a_comparison_is_the_threshold() -> None:
    source, said, logits = _load("above")
    assert source.spec.threshold == pytest.approx(0.4)
    assert np.array_equal(labels_of(logits, source.spec.threshold), said[:, 0].numpy())
    assert 0.05 < float(said.mean()) < 0.95


def test_independent_sigmoids_are_said_to_compete() -> None:
    source, said, logits = _load("sigmoids")
    np.testing.assert_allclose(torch.from_numpy(logits).sigmoid(), said, atol=2e-6)
    assert "its 4 channels compete" in source.remarks[0]


@pytest.mark.parametrize("name", REFUSED)
def test_labels_never_pass_for_logits(name: str) -> None:
    with pytest.raises(DeployError, match=r"ends in labels \(.*return them from the module") as refused:
        load_source(f"{__name__}:{name}", WINDOW, SourceOptions())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["softmax", "argmax"])
def test_logits_that_do_not_lead_to_what_the_module_says_are_noticed(name: str) -> None:
    """The module changes after it was captured: what was captured is no longer what it is."""
    source = load_source(f"{__name__}:{name}", WINDOW, SourceOptions())
    assert isinstance(source, TorchSource)
    source.module.get_submodule("inner.inner").ending = lambda x: ENDINGS[name](x.flip(1))  # type: ignore[assignment]
    with pytest.raises(GateError, match="is not what the module returns"):
        source.logits([np.random.default_rng(0).standard_normal((1, 3, *WINDOW), dtype=np.float32)])
