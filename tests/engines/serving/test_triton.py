"""A real tritonserver, started once, serves an exported bundle; tritonclient asks it over HTTP and gRPC.

Both come from tests/engines/serving/install_triton.sh; without them these are skipped.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import deploy
from engines.bundle import open_bundle
from engines.images.read import read_labels
from engines.images.write import confidence_bytes

HERE = Path(__file__).parent
TRITON = Path(sys.prefix) / "triton"
SIZES = ((40, 60), (64, 96), (130, 210), (200, 150), (65, 400))
MOST_PIXELS = 500_000
SECONDS = 60  # after which a server that does not answer is broken

pytestmark = pytest.mark.skipif(
    not (TRITON / "serve").exists(),
    reason=f"no tritonserver; run: tests/engines/serving/install_triton.sh {sys.executable} {TRITON}",
)


@dataclass(frozen=True)
class Server:
    """ports: of HTTP, gRPC and the metrics."""

    process: subprocess.Popen[bytes]
    ports: tuple[int, int, int]
    repository: Path
    log: Path

    def get(self, path: str, port: int = 0, body: bytes | None = None) -> str:
        """What HTTP answers; with a body to a POST.  Raises HTTPError."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[port]}/{path}", data=body)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return str(answer.read().decode())

    def ask(self, protocol: str, folder: Path, *requests: str, model: str = "tiny") -> list[dict[str, NDArray[Any]]]:
        """The outputs of each request by name, or ``error``; see client.py."""
        out = folder / "answers.npz"
        address = f"127.0.0.1:{self.ports[('http', 'grpc').index(protocol)]}"
        command = [TRITON / "bin" / "python", HERE / "client.py", protocol, address, model, out, *requests]
        subprocess.run(command, check=True, timeout=SECONDS)
        answers: list[dict[str, NDArray[Any]]] = [{} for _ in requests]
        with np.load(out) as found:
            for key in found:
                index, name = key.split(".")
                answers[int(index)][name] = found[key]
        return answers

    def count(self, metric: str, model: str = "tiny") -> float:
        """The sum of a metric over all versions of a model."""
        lines = [line for line in self.get("metrics", 2).splitlines() if line.startswith(f"{metric}{{")]
        return sum(float(line.split()[-1]) for line in lines if f'model="{model}"' in line)


def _free_ports(count: int) -> tuple[int, ...]:
    with_sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = tuple(each.getsockname()[1] for each in with_sockets)
    for each in with_sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("triton")
    repository = folder / "models"
    for name in ("tiny", "changed"):
        assert deploy.main(["export-triton", str(tiny_bundle), "-o", str(repository), "--name", name]) == 0
    with (repository / "tiny" / "config.pbtxt").open("a") as config:  # it is the user's
        config.write(f'parameters {{ key: "max_pixels" value {{ string_value: "{MOST_PIXELS}" }} }}\n')
    http, grpc, metrics = _free_ports(3)
    command = [
        TRITON / "serve", "--model-repository", repository, "--model-control-mode", "explicit", "--load-model", "tiny",
        "--http-address", "127.0.0.1", "--http-port", str(http), "--grpc-address", "127.0.0.1", "--grpc-port",
        str(grpc), "--metrics-address", "127.0.0.1", "--metrics-port", str(metrics), "--exit-timeout-secs", "1",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = folder / "log"
    with log.open("wb") as lines:
        process = subprocess.Popen(command, env=environment, stdout=lines, stderr=subprocess.STDOUT)
    try:
        found = Server(process, (http, grpc, metrics), repository, log)
        _await_ready(found)
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)


def _await_ready(server: Server) -> None:
    end = time.monotonic() + SECONDS
    while True:
        try:
            server.get("v2/health/ready")
            return
        except (urllib.error.URLError, ConnectionError):
            assert server.process.poll() is None, server.log.read_text()
            assert time.monotonic() < end, server.log.read_text()
            time.sleep(0.1)


@dataclass(frozen=True)
class Photographs:
    """Image files, their pixels as .npy, and the masks and confidences that `run` writes."""

    files: list[Path]
    pixels: list[Path]
    masks: Path


@pytest.fixture(scope="module")
def photographs(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    folder = tmp_path_factory.mktemp("photographs")
    rng, pixels = np.random.default_rng(0), []
    for index, size in enumerate(SIZES):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(image).save(folder / f"{index}.png")
        np.save(folder / f"{index}.npy", image[None])
        pixels.append(folder / f"{index}.npy")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(image).save(folder / "turned.jpg", exif=turned)
    alpha = np.dstack([image, np.where(image[:, :, 0] < 40, 0, 255).astype(np.uint8)])
    Image.fromarray(alpha).save(folder / "hidden.png")
    Image.fromarray(image[:, :, 0].astype(np.uint16) * 257).save(folder / "wide.tif")
    Image.fromarray(image).quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(image).convert("CMYK").save(folder / "inks.jpg")
    Image.fromarray(image[:, :, 1]).save(folder / "grey.png")
    files = sorted(path for path in folder.iterdir() if path.suffix != ".npy")
    masks = tmp_path_factory.mktemp("masks")
    argv = ["run", str(tiny_bundle), *map(str, files), "-o", str(masks), "--confidence"]
    assert deploy.main(argv) == 0
    return Photographs(files, pixels, masks)


def _equal(answer: dict[str, NDArray[Any]], masks: Path, name: str) -> None:
    """Bit for bit what `run` wrote for the image `name`."""
    assert "error" not in answer, str(answer["error"])
    np.testing.assert_array_equal(answer["labels"][0], read_labels(masks / f"{name}.png"))
    if "confidence" in answer:
        assert answer["confidence"].dtype == np.float32
        with Image.open(masks / f"{name}.confidence.png") as confidence:
            np.testing.assert_array_equal(confidence_bytes(answer["confidence"][0]), np.asarray(confidence))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_masks_and_confidences_are_those_of_run(
    server: Server, photographs: Photographs, tmp_path: Path, protocol: str
) -> None:
    """Files and pixels of many sizes at once, with and without confidence."""
    requests = [f"image={path}" for path in photographs.files]
    requests += [f"pixels={path}" for path in photographs.pixels]
    requests += [f"image={path}@labels" for path in photographs.files[:2]]
    names = [path.stem for path in (*photographs.files, *photographs.pixels, *photographs.files[:2])]
    answers = server.ask(protocol, tmp_path, *requests)
    for name, answer in zip(names, answers, strict=True):
        _equal(answer, photographs.masks, name)
    assert ["confidence" in answer for answer in answers] == [True] * (len(requests) - 2) + [False] * 2
    assert any((answer["labels"] == 255).any() for answer in answers)  # what the file hides


def test_requests_that_wait_go_to_the_device_together(server: Server, photographs: Photographs, tmp_path: Path) -> None:
    """Triton's own count; and several images of one size may come in one request."""
    image = np.load(photographs.pixels[2])
    large = np.tile(image, (1, 4, 4, 1))
    np.save(tmp_path / "large.npy", large)
    np.save(tmp_path / "three.npy", np.concatenate([image, image[:, ::-1], image]))
    before = server.count("nv_inference_count"), server.count("nv_inference_exec_count")
    *_, three = server.ask(
        "grpc", tmp_path, *[f"pixels={tmp_path}/large.npy@labels"] * 8, f"pixels={tmp_path}/three.npy"
    )
    assert server.count("nv_inference_count") - before[0] == 11
    assert server.count("nv_inference_exec_count") - before[1] < 9
    assert three["labels"].shape == three["confidence"].shape == (3, *SIZES[2])
    _equal(three, photographs.masks, "2")
    np.testing.assert_array_equal(three["labels"][2], three["labels"][0])
    assert (three["labels"][1] != three["labels"][0]).any()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_wrong_input_is_an_error_and_others_are_answered(
    server: Server, photographs: Photographs, tmp_path: Path, protocol: str
) -> None:
    good = photographs.files[0]
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    np.save(tmp_path / "four.npy", np.zeros((1, 8, 8, 4), np.uint8))
    np.save(tmp_path / "flat.npy", np.zeros((1, 0, 8, 3), np.uint8))
    np.save(tmp_path / "large.npy", np.zeros((1, 500, 1001, 3), np.uint8))
    Image.new("RGB", (1001, 500)).save(tmp_path / "large.png")
    wrong = {
        f"image={tmp_path}/cut.png": "image: damaged or incomplete",
        f"image={tmp_path}/text.png": "image: not an image",
        f"image={tmp_path}/empty.png": "image: an empty file",
        f"image={good}+{photographs.files[1]}": "images of 2 sizes in one request",
        f"image={good},pixels={photographs.pixels[0]}": "got 2 of image and pixels",
        f"pixels={tmp_path}/four.npy": "unexpected shape",
        f"pixels={tmp_path}/flat.npy": "expected (H, W, 3)",
        f"pixels={tmp_path}/large.npy": "got 1001x500, more than 500000 pixels (max_pixels)",
        f"image={tmp_path}/large.png": "got 1001x500, more than 500000 pixels; if that is no accident",
        f"image={good}@logits": "logits",
    }
    *answers, first, last = server.ask(protocol, tmp_path, *wrong, f"image={good}", f"pixels={photographs.pixels[0]}")
    for (request, said), answer in zip(wrong.items(), answers, strict=True):
        assert said in str(answer.get("error")), request
        assert "/proc" not in str(answer["error"])
    _equal(first, photographs.masks, good.stem)
    _equal(last, photographs.masks, "0")


def test_names_colours_and_the_model_are_in_the_config(server: Server, tiny_bundle: Path) -> None:
    spec = open_bundle(tiny_bundle).manifest.spec
    found = json.loads(server.get("v2/models/tiny/config"))
    facts = {key: value["string_value"] for key, value in found["parameters"].items()}
    assert tuple(json.loads(facts["classes"])) == spec.classes
    assert tuple(map(tuple, json.loads(facts["palette"]))) == spec.palette
    assert facts["source_sha256"] == spec.source_sha256
    assert found["instance_group"][0]["kind"] == "KIND_CPU"
    assert "dynamic_batching" in found


def test_a_newer_version_takes_over(
    server: Server, photographs: Photographs, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert deploy.main(["export-triton", str(tiny_bundle), "-o", str(server.repository), "--name", "tiny"]) == 0
    server.get("v2/repository/models/tiny/load", body=b"{}")
    assert json.loads(server.get("v2/models/tiny"))["versions"] == ["2"]
    (answer,) = server.ask("http", tmp_path, f"image={photographs.files[0]}")
    _equal(answer, photographs.masks, photographs.files[0].stem)


def test_a_changed_bundle_is_not_served_and_says_why(server: Server, photographs: Photographs, tmp_path: Path) -> None:
    with (server.repository / "changed" / "1" / "bundle" / "engine.bin").open("ab") as engine:
        engine.write(b"x")
    with pytest.raises(urllib.error.HTTPError) as error:
        server.get("v2/repository/models/changed/load", body=b"{}")
    assert "engine.bin has changed since it was built" in error.value.read().decode()
    (answer,) = server.ask("http", tmp_path, f"image={photographs.files[0]}")
    _equal(answer, photographs.masks, photographs.files[0].stem)


def test_an_instance_that_was_killed_is_back_once_it_is_loaded_again(
    server: Server, photographs: Photographs, tmp_path: Path
) -> None:
    """As the kernel kills one for want of memory.  Triton does not start it again by itself, nor by a load of what it
    takes for loaded."""
    request = f"image={photographs.files[0]}"
    for _ in range(2):
        failures = server.count("nv_inference_request_failure")
        os.kill(_stub(server), signal.SIGKILL)
        (answer,) = server.ask("http", tmp_path, request)
        assert "not healthy" in str(answer["error"])
        assert server.count("nv_inference_request_failure") == failures + 1
        for verb in ("unload", "load"):
            server.get(f"v2/repository/models/tiny/{verb}", body=b"{}")
        (answer,) = server.ask("http", tmp_path, request)
        _equal(answer, photographs.masks, photographs.files[0].stem)


def _stub(server: Server) -> int:
    """The process of the one instance."""
    children = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    stubs = [int(pid) for each in children for pid in each.read_text().split()]
    (stub,) = [pid for pid in stubs if b"triton_python_backend_stub" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return stub
