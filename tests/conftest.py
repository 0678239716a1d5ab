"""Shared fixtures.  One tiny bundle is built once and used read-only by every test that needs one."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines.gpu.cubins import Cubins

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # the models here are tiny: more threads only wait for each other
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data and weights, where they are at hand."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED.name}/: it is not part of the repository")
    return SHARED


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of tests.models:tiny, window 64x96, stride 48x64."""
    from engines.tiling.placement import Tiling
    from pipeline.build import build_bundle
    from pipeline.request import BuildRequest

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    request = BuildRequest("tests.models:tiny", folder, Tiling(64, 96, 48, 64), backend="openvino")
    build_bundle(request, lambda step, text: None)
    return folder


@pytest.fixture(scope="session")
def cubins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cubins:
    """The kernels for the GPUs that the tests to come name as ``sm``."""
    found = (
        vars(item).get("callspec") for item in request.session.items if "cubins" in vars(item).get("fixturenames", ())
    )
    wanted = {callspec.params["sm"] for callspec in found if callspec is not None and "sm" in callspec.params}
    return Cubins(wanted, tmp_path_factory.mktemp("cubins"))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT and SIGHUP end this process and those that it starts, also where the tests were started with them ignored
    (``nohup make test &``, cron): a process inherits that, and Python then installs no handler of its own.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hung_up)


@pytest.fixture(scope="session")
def exported() -> dict[str, tuple[Any, Any]]:
    """Graph and program of each model that `exports_once` has seen."""
    return {}


@pytest.fixture(scope="module")
def exports_once(exported: dict[str, tuple[Any, Any]]) -> Iterator[None]:
    """In the modules that ask for it, a model that was exported at a window is not exported there again.

    For tests that build the same small model many times and look at something else.  The models are told apart by
    their structure, weights and window.
    """
    from pipeline.checkpoints.sources import TorchSource
    from pipeline.graph.onnx_graph import OnnxGraph

    real = TorchSource.export

    def export(self: TorchSource) -> tuple[OnnxGraph, Any]:
        weights = (array.numpy().tobytes() for array in self.module.state_dict().values())
        key = hashlib.sha256(repr((self.module, self.window)).encode() + b"".join(weights)).hexdigest()
        if key not in exported:
            exported[key] = real(self)
        graph, program = exported[key]
        return replace(graph, model=graph.model.clone()), program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchSource, "export", export)
        yield
