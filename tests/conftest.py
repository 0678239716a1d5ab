"""Shared fixtures.  One tiny bundle is built once and used read-only by every test that needs one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

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
    from engines.tiling import Tiling
    from pipeline.build import BuildRequest, build_bundle

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    request = BuildRequest("tests.models:tiny", folder, Tiling(64, 96, 48, 64), backend="openvino")
    build_bundle(request, lambda step, text: None)
    return folder
