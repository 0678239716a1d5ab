"""The whole command line on a GPU: build, run, bench, rebuild, refuse.  Run by tests/engines/gpu/test_cuda.py.

The engine is OpenVINO's, called on the addresses that the GPU runtime hands out: everything around it is tested.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import engines.backends
import engines.gpu.compile as compiler
from engines.contract import Backend, BuildConfig, Session, Tensor

engines.backends._OBJECTS["gpu"] = "gpu:backend"
engines.backends.BACKENDS = tuple(engines.backends._OBJECTS)  # before the command line reads it

import deploy  # noqa: E402
from engines.backends.openvino.openvino import backend as openvino  # noqa: E402
from engines.bundle import KERNELS, MANIFEST, RUNTIME_CACHE, open_bundle, runtime_cache_of, seal  # noqa: E402
from engines.errors import DeployError  # noqa: E402
from engines.gpu.context import gpu_info  # noqa: E402
from engines.proof.first_run import prover  # noqa: E402
from engines.segmenter import open_segmenter  # noqa: E402
from tests.engines.gpu.fake_cuda import support  # noqa: E402

COMPILED = b"what the SDK compiled at run time"


class _Session:
    capturable = False
    refuses = False  # another context

    def __init__(self, session: Session, config: BuildConfig) -> None:
        self._of, self._calls = (session, config), list[Any]()
        self.runtime_cache = b"" if config.runtime_cache == COMPILED else COMPILED
        self._session, self.input = session, Tensor("image", (config.batch, 3, 64, 96), "fp32")
        answer = session.run(np.zeros(self.input.shape, np.float32))  # logits, or maps that end in a tail of ours
        self.output = Tensor("out", answer.shape, "fp32")
        self.enqueued = 0

    def run(self, windows: np.ndarray) -> np.ndarray:
        return self._session.run(windows)

    def enqueue(self, source: int, target: int, stream: int) -> None:
        _GPU.enqueued += 1

        def work(_: int | None) -> None:
            _at(target, self.output)[:] = self.run(_at(source, self.input).copy())

        self._calls.append(support.HOST_FUNCTION(work))
        assert support.driver().cuLaunchHostFunc(stream, self._calls[-1], id(self)) == 0

    def another(self) -> Any:
        if self.refuses:
            raise DeployError("gpu: no memory for one more execution context")
        return _Session(*self._of)

    def close(self) -> None:
        self._calls.clear()


def _at(address: int, tensor: Tensor) -> np.ndarray:
    size = 4 * int(np.prod(tensor.shape))
    return np.frombuffer((ctypes.c_char * size).from_address(address), np.float32).reshape(tensor.shape)


def _kept_here() -> str:
    return runtime_cache_of("gpu 1.0", str(gpu_info()))


class _GPU(Backend):
    name = "gpu"
    on_gpu = True
    enqueued = 0

    def unavailable(self) -> str | None:
        return None

    def version(self) -> str:
        return "gpu 1.0"

    def device(self) -> str:
        return str(gpu_info())

    def supports(self, precision: str) -> str | None:
        return None

    def remark(self, precision: str) -> str | None:
        return None

    def build(self, model: Path, config: BuildConfig) -> bytes:
        return openvino.build(model, config)

    @contextmanager
    def load(self, blob: bytes, config: BuildConfig) -> Iterator[Any]:
        with openvino.load(blob, config) as session:
            yield _Session(session, config)

    def layers(self, *args: Any, **kwargs: Any) -> Any:
        return openvino.layers(*args, **kwargs)


sys.modules["engines.backends.gpu"] = ModuleType("engines.backends.gpu")
sys.modules["engines.backends.gpu"].backend = _GPU()  # type: ignore[attr-defined]


@pytest.fixture(scope="module", autouse=True)
def _compiled_once() -> Iterator[None]:
    """nvcc takes half a minute for kernels that are the same each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "compile_kernels", cache(compiler.compile_kernels))
        yield


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graph for the GPU and for the CPU: the decoder's tail is a kernel on one and C on the other."""
    folder = tmp_path_factory.mktemp("bundles")
    support.configure(clock=1)
    assert deploy.main(_build(folder / "gpu", "gpu")) == 0
    with open_segmenter(folder / "gpu", prove=prover(lambda step, text: None)) as (_, manifest):
        assert manifest.contexts_on(manifest.sdk, manifest.device) == 1
    assert open_bundle(folder / "gpu").manifest.tail is not None
    assert open_bundle(folder / "gpu").read(_kept_here()) == COMPILED
    assert (
        deploy.main(["build-engine", str(folder / "gpu"), "-o", str(folder / "openvino"), "--backend", "openvino"]) == 0
    )
    assert not any(RUNTIME_CACHE.fullmatch(name) for name in open_bundle(folder / "openvino").manifest.files)
    return folder


COMMAND = """
import sys
import tests.engines.gpu.fake_cuda.check_bundle
import deploy
sys.argv[0] = "command.py"
sys.exit(deploy.command())
"""


def _commanded(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with the GPU's backend."""
    (folder / "command.py").write_text(COMMAND)
    return subprocess.run(
        [sys.executable, "command.py", *words], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_a_folder_is_dealt_out_to_all_gpus(bundles: Path, tmp_path: Path) -> None:
    pictures = {f"{index}.png": support.image(80 + index, 130, index) for index in range(5)}
    (tmp_path / "in").mkdir()
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    one = _commanded(tmp_path, "run", str(bundles / "gpu"), "in", "-o", "one", "--json")
    both = _commanded(tmp_path, "run", str(bundles / "gpu"), "in", "-o", "both", "--json", "--device", "all",
                      FAKE_CUDA_DEVICES="2")  # fmt: skip
    assert (one.returncode, both.returncode) == (2, 2), one.stderr + both.stderr
    first, second = json.loads(one.stdout), json.loads(both.stdout)
    assert [Path(each["input"]).name for each in second["images"]] == list(pictures)
    assert [each["classes"] for each in first["images"]] == [each["classes"] for each in second["images"]]
    assert list(second["failed"]) == list(first["failed"])
    assert second["left_out"] == first["left_out"] == {".txt": 1}
    for name in pictures:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()
    words = ("run", str(bundles / "gpu"), "in", "-o", "other")
    third = _commanded(tmp_path, *words, "--device", "3", FAKE_CUDA_DEVICES="2")
    assert third.returncode == 2
    assert "CUDA_VISIBLE_DEVICES is '3': look at nvidia-smi -L" in third.stderr
    fourth = _commanded(tmp_path, *words, "--device", "1", CUDA_VISIBLE_DEVICES="0", FAKE_CUDA_DEVICES="2")
    assert "--device: got 1, expected 0 to 0: CUDA_VISIBLE_DEVICES is '0'" in fourth.stderr
    none = _commanded(tmp_path, *words, "--device", "all", FAKE_CUDA_DEVICES="0")
    assert "no CUDA-capable device" in none.stderr
    mixed = _commanded(tmp_path, *words, "--device", "all", "--shard", "1/2")
    assert "error: --shard with --device all" in mixed.stderr
    for each in (one, both, third, fourth, none, mixed):
        assert "Traceback" not in each.stderr
        assert "FAKE CUDA" not in each.stderr


def _build(output: Path, backend: str) -> list[str]:
    windows = ["--tile", "64x96", "--stride", "48x64"]
    return ["build-engine", "tests.models:tiny", "-o", str(output), "--backend", backend, "--tail", *windows]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for index, size in enumerate([(150, 333), (40, 50), (64, 96), (150, 333), (201, 97)]):
        Image.fromarray(support.image(*size, index)).save(folder / f"{index}.png")
    return folder


def test_a_bundle_carries_the_kernels_and_gives_the_masks_of_the_cpu(
    bundles: Path, photographs: Path, tmp_path: Path
) -> None:
    manifest = open_bundle(bundles / "gpu").manifest
    assert KERNELS in manifest.files
    assert (bundles / "gpu" / KERNELS).read_bytes()[:4] == b"\x7fELF"
    before = _GPU.enqueued
    for name in ("openvino", "gpu"):
        command = ["run", str(bundles / name), str(photographs), "-o", str(tmp_path / name), "--confidence"]
        assert deploy.main(command) == 0
    assert _GPU.enqueued > before
    written = sorted(path.name for path in (tmp_path / "gpu").iterdir())
    assert len(written) == 10
    for name in written:
        assert (tmp_path / "gpu" / name).read_bytes() == (tmp_path / "openvino" / name).read_bytes()


@pytest.mark.parametrize("views", [["--tta", "--scales", "1,1.5"], ["--resize", "short=70"]], ids=["tta", "resize"])
def test_views_are_merged_as_on_the_cpu(bundles: Path, photographs: Path, tmp_path: Path, views: list[str]) -> None:
    for name in ("openvino", "gpu"):
        command = ["run", str(bundles / name), str(photographs), "-o", str(tmp_path / name), "--confidence", *views]
        assert deploy.main(command) == 0
    written = sorted(path.name for path in (tmp_path / "gpu").iterdir())
    assert len(written) == 10
    for name in written:
        assert (tmp_path / "gpu" / name).read_bytes() == (tmp_path / "openvino" / name).read_bytes()


def test_running_needs_no_compiler(bundles: Path, photographs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(sm: tuple[int, int]) -> bytes:
        raise AssertionError("compiled while running")

    monkeypatch.setattr(compiler, "compile_kernels", refuse)
    assert deploy.main(["run", str(bundles / "gpu"), str(photographs / "0.png"), "-o", str(tmp_path)]) == 0


def test_a_rebuild_makes_the_kernels_again_and_another_gpu_is_refused(
    bundles: Path, photographs: Path, tmp_path: Path, capsys: Any
) -> None:
    again = tmp_path / "again"
    assert deploy.main(["build-engine", str(bundles / "openvino"), "-o", str(again), "--backend", "gpu"]) == 0
    assert KERNELS in open_bundle(again).manifest.files
    back = tmp_path / "back"
    assert deploy.main(["build-engine", str(again), "-o", str(back), "--backend", "openvino"]) == 0
    assert KERNELS not in open_bundle(back).manifest.files

    class Other(_GPU):
        def device(self) -> str:
            return "cuda sm_87 Orin, driver for CUDA 12.6"

    module = sys.modules["engines.backends.gpu"]
    own, module.backend = module.backend, Other()  # type: ignore[attr-defined]
    try:
        capsys.readouterr()
        assert deploy.main(["run", str(again), str(photographs / "0.png"), "-o", str(tmp_path / "no")]) == 2
    finally:
        module.backend = own  # type: ignore[attr-defined]
    assert "rebuild it here: deploy.py build-engine" in capsys.readouterr().err


def test_kernels_that_do_not_compile_are_told_before_the_engine_is_built(
    bundles: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def refuse(sm: tuple[int, int]) -> bytes:
        raise DeployError("kernels: no CUDA compiler")

    def build(*_: object) -> bytes:
        raise AssertionError("built an engine for nothing")

    monkeypatch.setattr(compiler, "compile_kernels", refuse)
    monkeypatch.setattr(_GPU, "build", build)
    command = ["build-engine", str(bundles / "openvino"), "-o", str(tmp_path / "no"), "--backend", "gpu"]
    assert deploy.main(command) == 2
    assert "no CUDA compiler" in capsys.readouterr().err


@pytest.mark.parametrize(("built", "compiled"), [("87", 0), ("86", 1), ("80", 1), ("90", 1), ("89", 1)])
def test_an_engine_for_other_gpus_too_gets_kernels_for_this_one(
    bundles: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, built: str, compiled: int
) -> None:
    """As with --hardware ampere_plus: the GPU here is an sm_87, on which only its own cubin runs."""

    class Anywhere(_GPU):
        def refuses(self, sdk: str, device: str, config: BuildConfig) -> str | None:
            return None

        def device(self) -> str:
            return f"cuda sm_{built} Other GPU, driver for CUDA 13.0"

    copy, asked = tmp_path / "copy", list[tuple[int, int]]()
    shutil.copytree(bundles / "gpu", copy)
    seal(copy, replace(open_bundle(copy).manifest, device=Anywhere().device(), proven=None))
    monkeypatch.setattr(sys.modules["engines.backends.gpu"], "backend", Anywhere())
    monkeypatch.setattr(compiler, "compile_kernels", lambda sm: asked.append(sm) or support.CUBIN)
    with open_segmenter(copy) as (segmenter, _):
        segmenter.segment(support.image(64, 96))
    assert asked == [(8, 7)] * compiled
    if compiled:

        def refuse(sm: tuple[int, int]) -> bytes:
            raise DeployError("kernels: no CUDA compiler; run: pip install nvidia-cuda-nvrtc")

        monkeypatch.setattr(compiler, "compile_kernels", refuse)
        expected = f"it is for sm_{built}, this GPU is sm_87, .*pip install nvidia-cuda-nvrtc"
        with pytest.raises(DeployError, match=expected), open_segmenter(copy):
            pass


def test_kernels_with_a_changed_byte_are_refused(bundles: Path, photographs: Path, tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundles / "gpu", copy)
    kernels = bytearray((copy / KERNELS).read_bytes())
    kernels[len(kernels) // 2] ^= 1
    (copy / KERNELS).write_bytes(kernels)
    assert deploy.main(["run", str(copy), str(photographs / "0.png"), "-o", str(tmp_path / "no")]) == 2
    assert f"{KERNELS} has changed" in capsys.readouterr().err


def test_a_gpu_lost_in_a_folder_exits_with_1_and_keeps_the_masks(
    bundles: Path, photographs: Path, tmp_path: Path
) -> None:
    # An image is 15 windows, each a gather and a scatter, and 3 stitches; two may be under way.
    words = ("run", str(bundles / "gpu"), str(photographs), "-o", "masks", "--json")
    ended = _commanded(tmp_path, *words, FAKE_CUDA_FAIL_AFTER="70")
    assert ended.returncode == 1
    assert len([line for line in ended.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in ended.stderr
    assert "FAKE CUDA" not in ended.stderr
    assert ended.stderr.count("PyCUDA WARNING") <= 1  # of its own, where it lets go of the context that is gone
    report = json.loads(ended.stdout)
    done = [Path(image["input"]).name for image in report["images"]]
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == done
    assert 1 <= len(done) <= 4
    assert len(report["failed"]) == 5 - len(done)
    right = tmp_path / "right"
    assert deploy.main(["run", str(bundles / "openvino"), str(photographs), "-o", str(right)]) == 0
    for name in done:
        assert (tmp_path / "masks" / name).read_bytes() == (right / name).read_bytes()


def test_bands_and_batches(bundles: Path, tmp_path: Path) -> None:
    batched = tmp_path / "batched"
    source = str(bundles / "gpu")
    assert deploy.main(["build-engine", source, "-o", str(batched), "--batch", "3"]) == 0
    assert json.loads((batched / MANIFEST).read_text())["batch"] == 3
    picture = support.image(333, 150)
    with open_segmenter(bundles / "openvino") as (segmenter, _):
        right = segmenter.segment(picture, confidence=True)
    for bundle in (bundles / "gpu", batched):
        with open_segmenter(bundle) as (segmenter, _):
            assert support.same(segmenter.segment(picture, confidence=True), right)
            bands = list(segmenter.bands(picture))
        assert np.array_equal(np.concatenate([band.labels for band in bands]), right.labels)


class _Ahead(_GPU):
    """Builds where there is no GPU, as TensorRT-RTX does."""

    there = False

    def unavailable(self) -> str | None:
        return None if self.there else "no GPU to run or verify on"

    def only_builds(self) -> str | None:
        return None if self.there else "no GPU here"

    def device(self) -> str:
        return super().device() if self.there else "no GPU"

    def refuses(self, sdk: str, device: str, config: BuildConfig) -> str | None:
        return None


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was built where nothing could run it."""
    folder, said = tmp_path_factory.mktemp("ahead"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(sys.modules["engines.backends.gpu"], "backend", _Ahead())
        assert deploy.main(_build(folder / "ahead", "gpu")) == 0
        assert deploy.main([*_build(folder / "no", "gpu"), "--batch", "2"]) == 2, "nothing would have compared them"
    assert "UNVERIFIED: no GPU here" in said.getvalue()
    manifest = open_bundle(folder / "ahead").manifest
    assert (manifest.proven, KERNELS in manifest.files) == ((), False)
    assert "engine" not in [step["step"] for step in manifest.verification]
    return folder / "ahead"


@pytest.fixture
def unproven(ahead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It, on a machine that now can."""
    monkeypatch.setattr(sys.modules["engines.backends.gpu"], "backend", _Ahead())
    monkeypatch.setattr(_Ahead, "there", True)
    return Path(shutil.copytree(ahead, tmp_path / "ahead"))


def test_an_engine_that_nothing_ran_is_verified_by_its_first_run(
    unproven: Path, photographs: Path, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """On another GPU again, and then no file is replaced but the manifest: a kill between two would end the bundle."""
    with pytest.raises(DeployError, match=r"not yet verified on cuda sm_87 .*deploy\.py run"), open_segmenter(unproven):
        pass
    command = ["run", str(unproven), str(photographs / "0.png"), "-o"]
    assert deploy.main([*command, str(tmp_path / "masks")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["verify", "contexts"]
    assert lines[0].startswith("verify      first time on cuda sm_87")
    assert all(line.endswith("recorded in the bundle") for line in lines)
    manifest = open_bundle(unproven).manifest
    assert manifest.proven == (("gpu 1.0", str(gpu_info())),)
    assert [step["step"] for step in manifest.verification][-2:] == ["engine", "tiled mask"]
    open_bundle(unproven).check()
    assert (unproven / KERNELS).read_bytes()[:4] == b"\x7fELF"
    assert (unproven / _kept_here()).read_bytes() == COMPILED
    assert not [path.name for path in unproven.iterdir() if path.name.startswith(".")]
    assert deploy.main([*command, str(tmp_path / "again")]) == 0
    assert capsys.readouterr().err == ""
    assert deploy.main(["run", str(bundles / "openvino"), str(photographs / "0.png"), "-o", str(tmp_path / "cpu")]) == 0
    for folder in ("masks", "again"):
        assert (tmp_path / folder / "0.png").read_bytes() == (tmp_path / "cpu" / "0.png").read_bytes()
    monkeypatch.setattr(_Ahead, "device", lambda self: "another GPU")
    monkeypatch.setitem(globals(), "COMPILED", b"for another GPU")
    assert deploy.main([*command, str(tmp_path / "again")]) == 0
    open_bundle(unproven).check()
    assert open_bundle(unproven).manifest.proven_on[1:] == (("gpu 1.0", "another GPU"),)
    second = runtime_cache_of("gpu 1.0", "another GPU")
    assert (unproven / second).read_bytes() == b"for another GPU"
    assert (unproven / _kept_here()).read_bytes() == b"what the SDK compiled at run time"
    files = open_bundle(unproven).manifest.files
    assert {_kept_here(), second} == {name for name in files if RUNTIME_CACHE.fullmatch(name)}
    taken: list[bytes] = []
    loaded = _GPU.load
    monkeypatch.setattr(
        _GPU, "load", lambda self, blob, config: taken.append(config.runtime_cache) or loaded(self, blob, config)
    )
    for device in (lambda self: "another GPU", _GPU.device, lambda self: "a third"):
        monkeypatch.setattr(_Ahead, "device", device)
        with suppress(DeployError), open_segmenter(unproven):  # the third was not proven
            pass
    assert taken == [b"for another GPU", b"what the SDK compiled at run time", b""]


def test_one_that_is_not_what_the_checkpoint_computes_is_refused_and_stays_unproven(
    unproven: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    right = _Session.run
    monkeypatch.setattr(_Session, "run", lambda self, windows: 1.01 * right(self, windows))
    before = (unproven / MANIFEST).read_bytes()
    assert deploy.main(["run", str(unproven), str(photographs / "0.png"), "-o", str(tmp_path / "masks")]) == 3
    text = capsys.readouterr().err
    assert "not verified before with gpu 1.0 on cuda sm_87" in text
    assert "deploy.py build-engine" in text
    assert not (tmp_path / "masks").exists()
    assert (unproven / MANIFEST).read_bytes() == before


def test_a_bundle_that_cannot_be_written_is_verified_each_time(
    unproven: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    opened = os.open

    def read_only(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and flags & os.O_CREAT:
            raise OSError(30, "Read-only file system")
        return opened(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", read_only)
    for _ in range(2):
        assert deploy.main(["run", str(unproven), str(photographs / "0.png"), "-o", str(tmp_path / "masks")]) == 0
        assert "not recorded (Read-only file system): done again until it is" in capsys.readouterr().err
    assert open_bundle(unproven).manifest.proven == ()


def test_another_driver_or_gpu_is_a_first_time_too(
    bundles: Path, photographs: Path, tmp_path: Path, capsys: Any
) -> None:
    copy = Path(shutil.copytree(bundles / "gpu", tmp_path / "copy"))
    seal(copy, replace(open_bundle(copy).manifest, proven=(("gpu 1.0", "cuda sm_87 another, driver for CUDA 12.6"),)))
    assert deploy.main(["run", str(copy), str(photographs / "0.png"), "-o", str(tmp_path / "masks")]) == 0
    assert "first time on cuda sm_87" in capsys.readouterr().err
    assert len(open_bundle(copy).manifest.proven_on) == 2


@pytest.fixture
def unmeasured(bundles: Path, tmp_path: Path) -> Path:
    """A bundle that was not asked yet how many contexts serve; engines side by side take half the time."""
    copy = Path(shutil.copytree(bundles / "gpu", tmp_path / "copy"))
    seal(copy, replace(open_bundle(copy).manifest, contexts={}))
    support.configure(clock=2)
    return copy


def test_what_was_not_settled_is_measured_again(
    unmeasured: Path, photographs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    before = (unmeasured / "manifest.json").read_bytes()
    for settled, expected in ((False, "1"), (True, "2")):
        with monkeypatch.context() as patch:
            if not settled:
                patch.setattr("engines.proof.contexts.is_settled", lambda ratios: False)
            out = str(tmp_path / expected)
            assert deploy.main(["run", str(unmeasured), str(photographs), "-o", out, "--json"]) == 0
        text = capsys.readouterr()
        assert json.loads(text.out)["contexts"] == expected
        assert ("not recorded: measured again at the next run" in text.err) is not settled
        assert ((unmeasured / "manifest.json").read_bytes() == before) is not settled


def test_how_many_contexts_serve_is_measured_once_and_followed(
    bundles: Path, unmeasured: Path, photographs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Engines side by side take half the time here; where a second context is refused later, that is said."""
    said, found = [], []
    for refuses in (False, False, True):
        monkeypatch.setattr(_Session, "refuses", refuses)
        folder = tmp_path / str(len(found))
        assert deploy.main(["run", str(unmeasured), str(photographs), "-o", str(folder), "--json"]) == 0
        text = capsys.readouterr()
        said.append(text.err)
        found.append(json.loads(text.out)["contexts"])
        for path in folder.iterdir():
            assert path.read_bytes() == (tmp_path / "0" / path.name).read_bytes()
    assert found == ["2", "2", "1: gpu: no memory for one more execution context"]
    times = "1 ms a batch with one execution context, 0.5 with two in turns: both take them; recorded in the bundle"
    assert said[:2] == [f"contexts    {times}\n", ""]
    assert said[2] == "contexts    one execution context, not two: gpu: no memory for one more execution context\n"
    (measured,) = open_bundle(unmeasured).manifest.contexts.values()
    assert (measured["used"], measured["two_ms"]) == (2, 0.5)
    assert deploy.main(["inspect", str(unmeasured)]) == 0
    assert times.partition(";")[0] in capsys.readouterr().out
    assert deploy.main(["run", str(bundles / "openvino"), str(photographs), "-o", str(tmp_path / "cpu")]) == 0
    for path in (tmp_path / "cpu").iterdir():
        assert path.read_bytes() == (tmp_path / "0" / path.name).read_bytes()
