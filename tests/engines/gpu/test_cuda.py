"""The GPU runtime on the fake driver and the real pycuda, each check in a process that sees that driver.

pycuda is built by tests/engines/gpu/fake_cuda/install_pycuda.sh; without it these are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.gpu import emulated

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pycuda") is None,
    reason=f"pycuda is not installed; run: tests/engines/gpu/fake_cuda/install_pycuda.sh {sys.executable}",
)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a process that sees the fake driver, with the kernels of tile.cu compiled for the CPU."""
    folder = tmp_path_factory.mktemp("driver")
    build = HERE / "fake_cuda" / "build.sh"
    if subprocess.run(["bash", build, "--toolkit"], capture_output=True, check=False).returncode:
        pytest.skip("no CUDA toolkit, whose headers the fake driver is compiled with")
    subprocess.run(["bash", build, folder], check=True)
    kernels = emulated.build(folder / "kernels.so")
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_CUDA_KERNELS": str(kernels), "PYTHONPATH": str(ROOT)}


def _start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _check(environment: dict[str, str], name: str, *options: str) -> subprocess.Popen[str]:
    path = HERE / "fake_cuda" / f"{name}.py"
    return _start(environment, "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path), *options)


def _finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, f"{out}\n{err}"
    return out, err


@pytest.mark.parametrize(
    "name",
    [
        "check_bundle",
        "check_flow",
        "check_errors",
        "check_tail",
        "check_views",
        "check_lanes",
        "check_counts",
        "check_cameras",
    ],
)
def test_on_the_fake_driver(environment: dict[str, str], name: str) -> None:
    out, err = _finished(_check(environment, name))
    assert "skipped" not in out
    assert "FAKE CUDA" not in err  # how the driver says that something was wrong, or never freed


def test_two_processes_at_once(environment: dict[str, str]) -> None:
    both = [_check(environment, "check_flow", "-k", "folder or strips") for _ in range(2)]
    for process in both:
        assert "FAKE CUDA" not in _finished(process)[1]


@pytest.mark.parametrize(
    ("launches", "views", "masks"),
    [(0, "0", (0, 0)), (70, "0", (0, 2)), (150, "0", (2, 4)), (250, "0", (4, 7)), (900, "1", (1, 5))],
)
@pytest.mark.parametrize("integrated", ["0", "1"], ids=["discrete", "integrated"])
@pytest.mark.parametrize("lazy", ["0", "1"], ids=["at once", "drawn, two contexts"])
def test_a_context_lost_in_the_middle_of_a_folder(
    environment: dict[str, str],
    tmp_path: Path,
    launches: int,
    views: str,
    masks: tuple[int, int],
    integrated: str,
    lazy: str,
) -> None:
    """The masks that were written are whole and right, the others are reported, and nothing more runs on the GPU."""
    arguments = [str(launches), integrated, lazy, str(tmp_path), views]
    out, err = _finished(_start(environment, "tests.engines.gpu.fake_cuda.lost", *arguments))
    seen = json.loads(out)
    report, written = seen["report"], seen["written"]
    assert masks[0] <= len(written) <= masks[1]
    assert seen["right"]
    assert sorted(Path(image["mask"]).name for image in report["images"]) == written
    assert len(report["failed"]) == 8 - len(written)
    assert "an illegal memory access was encountered (error 700); start the program again" in report["lost"]
    assert {*report["failed"].values(), *seen["later"]} == {report["lost"]}
    assert "Traceback" not in err
    assert "FAKE CUDA" not in err  # no handle of the context is used once it was released
    assert err.count("PyCUDA WARNING") <= 1  # freeing is not tried block by block
