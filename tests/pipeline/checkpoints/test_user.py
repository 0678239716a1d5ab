"""Python factories: what they may return, and what is said when they do not."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints import LoadedModel, load_model
from tests.pipeline.checkpoints.published import (
    picture,
    refusal,
    save,
)

FACTORIES = """
from collections import namedtuple
import torch
from torch import nn
from engines.spec import ModelSpec

Output = namedtuple("Output", ["loss", "logits"])

class Net(nn.Module):
    def __init__(self, wrap=lambda x: x, classes=3, stride=4):
        super().__init__()
        self.wrap = wrap
        self.conv = nn.Conv2d(3, classes, stride, stride)
        self.register_buffer("steps", torch.tensor(5))
    def forward(self, x):
        return self.wrap(self.conv(x))

def plain(): return Net()
def first(): return Net(lambda x: (x, x.sum()))
def listed(): return Net(lambda x: [None, x])
def named(): return Net(lambda x: Output(x.sum(), x))
def logits(): return Net(lambda x: {"logits": x, "aux": x * 2})
def out(): return Net(lambda x: {"aux": x * 2, "out": x})
def silent(): return Net(lambda x: {"features": x})
def flat(): return Net(lambda x: x.flatten(1))
def ragged(): return Net(lambda x: x[:, :, 1:])
def bigger(): return Net(stride=1, wrap=lambda x: nn.functional.interpolate(x, scale_factor=2.0))
def many(): return Net(classes=256, stride=8)
def broken(): return Net(lambda x: x @ x.new_zeros(3, 3))
def needy(size): return Net()
def number(): return 3
def bug(): raise ZeroDivisionError("mine")
def described(names): return Net(), ModelSpec("net", "v1", names, ((0, 0, 0),) * len(names), mean=(1, 2, 3))
def with_spec(): return described(("a", "b", "c"))
def wrong_spec(): return described(("a", "b"))
def sized(width, stride=4, name="a"):
    net = Net(classes=width, stride=stride)
    net.class_names = [name] * width
    return net
class Said(Net):
    class_names, mean, std, channel_order = ("road", "car", "sky"), (1, 2, 3), [4, 5, 6], "BGR"
    palette = [[1, 2, 3]] * 3
def said(): return Said()
def said_small():
    net = Said()
    net.std = torch.tensor([0.2, 0.2, 0.2])
    return net
def uneven(): return Net(stride=1, wrap=lambda x: nn.functional.interpolate(x, size=(11, 16), mode="bilinear"))
instance = Net()
class Outer:
    @staticmethod
    def make(): return Net()
"""
WINDOW = (64, 96)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LoadedModel]]:
    """Load a function of a module that lies in the current folder, which is not on sys.path."""
    (tmp_path / "users_models.py").write_text(FACTORIES)
    (tmp_path / "users_broken.py").write_text("import a_package_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load(function: str, module: str = "users_models", **options: Any) -> LoadedModel:
        return load_model(f"{module}:{function}", window=WINDOW, **options)

    yield load
    sys.modules.pop("users_models", None)


@pytest.mark.parametrize("function", ["plain", "first", "listed", "named", "logits", "out", "Outer.make"])
def test_factory_outputs(function: str, make: Callable[..., LoadedModel]) -> None:
    loaded = make(function)
    image = picture(*WINDOW)
    net = sys.modules["users_models"].Net()
    net.load_state_dict(loaded.module.get_submodule("inner").state_dict())
    assert torch.equal(loaded.module(image), net(image))
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    spec = loaded.spec
    assert (len(spec.classes), spec.logits_stride, spec.source) == (3, 4, f"factory users_models:{function}")


def test_factory_spec_is_kept(make: Callable[..., LoadedModel]) -> None:
    spec = make("with_spec").spec
    assert (spec.architecture, spec.classes, spec.mean) == ("net", ("a", "b", "c"), (1, 2, 3))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("absent", "has no attribute 'absent'"),
        ("needy", "missing a required argument: 'size'; it is called with no arguments and takes (size): give"),
        ("instance", "got a Net, expected a function"),
        ("Output._fields", "got a tuple of str, str, expected a function"),
        ("number", "got an int, expected an nn.Module or (nn.Module, ModelSpec)"),
        ("silent", "got a dict from the module, expected a tensor of logits"),
        ("flat", "got logits (1, 1152) for a 64x96 window"),
        ("ragged", "got logits (1, 3, 15, 24) for a 64x96 window"),
        ("bigger", "got logits (1, 3, 128, 192)"),
        ("many", "with 1 <= K <= 255"),
        ("broken", "choose another with --tile"),
        ("wrong_spec", "got a ModelSpec of 2 classes at 1/4, expected 3 at 1/4"),
    ],
)
def test_factories_that_do_not_fit(function: str, message: str, make: Callable[..., LoadedModel]) -> None:
    assert message in refusal(lambda: make(function))


def test_factory_that_cannot_be_imported(make: Callable[..., LoadedModel]) -> None:
    assert "No module named 'nowhere'" in refusal(lambda: make("f", "nowhere.at_all"))
    assert "No module named 'a_package_nobody_has'" in refusal(lambda: make("f", "users_broken"))
    with pytest.raises(ZeroDivisionError, match="mine"):
        make("bug")


def test_factory_weights_are_strict(make: Callable[..., LoadedModel], tmp_path: Path) -> None:
    make("plain")
    state = {key: torch.full_like(value, 2) for key, value in sys.modules["users_models"].Net().state_dict().items()}
    path = tmp_path / "w.pth"
    save(path, state)
    loaded = make("plain", weights=path)
    assert {int(value.unique()) for value in loaded.module.state_dict().values()} == {2}
    assert loaded.spec.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    save(path, {key: value for key, value in state.items() if key != "conv.bias"})
    assert "got no tensor for conv.bias" in refusal(lambda: make("plain", weights=path))
    save(path, {**state, "other": torch.zeros(1)})
    assert "got unknown other" in refusal(lambda: make("plain", weights=path))
    save(path, {**state, "conv.bias": torch.zeros(4)})
    assert re.search(r"conv\.bias: got shape \(4,\), expected \(3,\)", refusal(lambda: make("plain", weights=path)))
    save(path, {**state, "conv.bias": torch.full((3,), float("nan"))})
    assert "conv.bias: got 3 of 3 values NaN" in refusal(lambda: make("plain", weights=path))


def test_a_factory_takes_arguments(make: Callable[..., LoadedModel]) -> None:
    spec = make("sized", arguments={"width": 5, "stride": 8, "name": "thing"}).spec
    assert (len(spec.classes), spec.logits_stride, spec.classes[0]) == (5, 8, "thing")
    message = refusal(lambda: make("sized", arguments={"breadth": 5}))
    assert "breadth" in message
    assert "--arg NAME=VALUE" in message
    assert "expected a Python factory" in refusal(lambda: load_model("demo", arguments={"x": 1}))


def test_what_the_module_says_of_itself(make: Callable[..., LoadedModel]) -> None:
    spec = make("said").spec
    assert (spec.classes, spec.mean, spec.std, spec.channel_order) == (
        ("road", "car", "sky"),
        (1, 2, 3),
        (4, 5, 6),
        "BGR",
    )
    assert spec.palette == ((1, 2, 3),) * 3
    assert "multiply mean and std by 255" in refusal(lambda: make("said_small"))


def test_logits_need_not_divide_the_window(make: Callable[..., LoadedModel]) -> None:
    """64x96 -> 11x16: one stride of 6, rounded up along one axis, as strided convolutions round."""
    assert make("uneven").spec.logits_stride == 6
