"""A short fuzz of everything that reads a file, without libFuzzer; and what the long one found."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import Manifest
from engines.errors import DeployError
from engines.proof.golden import Golden
from pipeline.checkpoints.huggingface_config import config_from_json, label_fields
from pipeline.checkpoints.processor import processor_fields
from pipeline.graph.given import import_onnx
from tests.fuzz.mutate import as_json, as_png
from tests.fuzz.targets import TARGETS, Target, _manifest_body

INPUTS = 60  # of each target: the long run is `make fuzz`


def _bytewise(rng: random.Random) -> Callable[[bytes, int], bytes]:
    """Bits flipped, bytes set, parts cut, doubled and swapped: what libFuzzer does, without its knowledge."""

    def mutate(data: bytes, limit: int) -> bytes:
        body = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(body) + 1)
            end = min(len(body), at + rng.choice((1, 2, 4, 32)))
            action = rng.randrange(4)
            if action == 0 and at < len(body):
                body[at] ^= 1 << rng.randrange(8)
            elif action == 1:
                body[at:end] = bytes(rng.choice((0, 255, rng.randrange(256))) for _ in range(end - at))
            elif action == 2:
                del body[at:end]
            else:
                body[at:at] = body[at:end]
        return bytes(body[:limit])

    return mutate


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_input_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    target: Target = TARGETS[name]
    seeds = target.seeds(tmp_path)
    for seed in seeds:
        target.read(seed, tmp_path)
    rng = random.Random(name)
    plain = _bytewise(rng)
    for index in range(INPUTS):
        seed = seeds[index % len(seeds)]
        data = plain(seed, 1 << 16) if target.mutator is None else target.mutator(seed, 1 << 16, rng, plain)
        refusal = ""
        try:
            target.read(data, tmp_path)
        except DeployError as error:
            refusal = str(error)
        assert "\n" not in refusal


def test_the_mutators_keep_the_shell_and_change_the_inside() -> None:
    rng = random.Random(0)
    body = json.dumps({"a": [1, 2, {"b": "text"}], "c": None}).encode()
    changed = [as_json(body, 1 << 16, rng, lambda data, limit: data) for _ in range(100)]
    assert all(isinstance(json.loads(data), object) for data in changed)
    assert len(set(changed)) > 50
    png = TARGETS["png"].seeds(Path())[0]
    sane = [as_png(png, 1 << 16, rng, _bytewise(rng)) for _ in range(50)]
    assert len(set(sane)) > 20
    assert all(data[:8] == png[:8] for data in sane[:1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_shape", [1, 3, float("inf"), 32]),
        ("output_shape", None),
        ("batch", "2"),
        ("files", []),
        ("precision", 7),
        ("verification", {"step": "engine"}),
        ("tensorrt", 3),
        ("tensorrt", {"level": "5"}),
        ("spec", {}),
    ],
)
def test_an_ill_typed_manifest_is_refused_by_the_name_of_the_field(field: str, value: object) -> None:
    with pytest.raises(DeployError, match="build the bundle again"):
        Manifest.from_json({**_manifest_body(), field: value})


@pytest.mark.parametrize("name", ["sdk", "device", "options", "targets", "plan_bytes"])
@pytest.mark.parametrize("value", [None, 1.5, [["x"]], {"x": 1}])
def test_an_ill_typed_engine_header_is_refused(name: str, value: object, tmp_path: Path) -> None:
    body = {**json.loads(TARGETS["engine"].seeds(tmp_path)[0]), name: value}
    with pytest.raises(DeployError, match=r"engine|TensorRT options"):
        TARGETS["engine"].read(json.dumps(body).encode(), tmp_path)


def test_odd_values_in_a_hugging_face_config_are_refused(tmp_path: Path) -> None:
    config: dict[str, Any] = json.loads(TARGETS["config"].seeds(tmp_path)[0])
    with pytest.raises(DeployError, match="hidden_act"):
        config_from_json({**config, "hidden_act": {"x": 1}}, 2)
    with pytest.raises(DeployError, match="palette"):
        label_fields({**config, "palette": [[float("inf"), 0, 0], [0, 0, 0]]}, 2)
    for odd in (10**400, float("nan"), float("inf")):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**config, "image_std": [odd] * 3}))
        with pytest.raises(DeployError, match=r"std|unusable"):
            TARGETS["config"].read((tmp_path / "preprocessor_config.json").read_bytes(), tmp_path)
    assert processor_fields(tmp_path / "nothing") == {}


def test_an_onnx_whose_tensors_are_damaged_is_no_readable_file(tmp_path: Path) -> None:
    """The library reads lazily: the fault shows when the graph is written again, not when it is loaded."""
    import onnx

    model = onnx.load_from_string(TARGETS["onnx"].seeds(tmp_path)[0])
    model.graph.initializer[0].data_type = 222
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(DeployError, match="not a readable ONNX file"):
        import_onnx(tmp_path / "model.onnx", (32, 32))


def test_an_attribute_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Found by the long run: ONNX's checker does not look at the bytes."""
    data = TARGETS["onnx"].seeds(tmp_path)[0]
    with pytest.raises(DeployError, match="not a readable ONNX file"):
        TARGETS["onnx"].read(data.replace(b"linear", b"lin\xe1ar"), tmp_path)


def test_a_golden_of_other_shapes_or_types_is_refused(tmp_path: Path) -> None:
    good = {
        "image": np.zeros((8, 8, 3), np.uint8), "logits": np.zeros((1, 2, 8, 8), np.float32), "step": 1,
        "labels": np.zeros((8, 8), np.uint8), "reference": "x",
    }  # fmt: skip
    path = tmp_path / "golden.npz"
    np.savez(path, **good)
    assert Golden.load(path.read_bytes()).step == 1
    for name, value in (("image", np.zeros((8, 8), np.uint8)), ("logits", np.zeros((1, 2, 8, 8))), ("labels", 3)):
        np.savez(path, **{**good, name: value})
        with pytest.raises(DeployError, match="build the bundle again"):
            Golden.load(path.read_bytes())


def test_members_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    """Found by the long run: of a member that is no .npy numpy hands out the bytes."""
    path = tmp_path / "golden.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("image", "logits", "step", "labels", "reference"):
            archive.writestr(f"{name}.npy", b"1")
    with pytest.raises(DeployError, match="build the bundle again"):
        Golden.load(path.read_bytes())


@pytest.mark.parametrize("line", [",", ",,,", ":", "1 2 3"])
def test_a_line_of_colours_that_says_nothing_is_named(line: str, tmp_path: Path) -> None:
    """Found by the long run: of commas alone nothing was left to unpack."""
    with pytest.raises(DeployError, match="expected a name and three numbers"):
        TARGETS["palette"].read(line.encode(), tmp_path)
