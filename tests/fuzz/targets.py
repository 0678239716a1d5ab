"""What is fuzzed: a reader, sane inputs to start from, and how mutated bytes reach it past its own digests."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.mutate import Mutator, as_json, as_png

PIXELS = 1 << 20  # images beyond are refused by their header
WINDOW = (32, 32)


@dataclass(frozen=True)
class Target:
    """read: of mutated bytes, in a folder of its own.  seeds: sane inputs.  mutator: one that knows the format.

    sanitized: runs on a C core compiled with the address and undefined-behaviour sanitizers.
    """

    seeds: Callable[[Path], Sequence[bytes]]
    read: Callable[[bytes, Path], object]
    mutator: Mutator | None = None
    sanitized: bool = False


def _written(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _pictures(mode: str, *formats: str) -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    found = []
    for name in formats:
        file = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(file, name)
        found.append(file.getvalue())
    return found


def _image_seeds(folder: Path) -> list[bytes]:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 24)).save(turned, "JPEG", exif=exif)
    deep = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32)).save(deep, "PNG")
    many = _pictures("RGB", "PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM")
    return [*many, *_pictures("P", "GIF", "PNG"), turned.getvalue(), deep.getvalue()]


def _image(data: bytes, folder: Path) -> object:
    from engines.images.read import read_image

    return read_image(_written(data, folder, "image"), PIXELS)


def _labels(data: bytes, folder: Path) -> object:
    from engines.images.read import read_labels

    return read_labels(_written(data, folder, "labels"), PIXELS)


def _manifest_seeds(folder: Path) -> list[bytes]:
    return [json.dumps(_manifest_body()).encode()]


def _manifest_body() -> dict[str, Any]:
    from engines.bundle import FILES, Manifest
    from engines.spec import ModelSpec
    from engines.tiling.placement import Tiling

    spec = ModelSpec("segformer", "b0", ("road", "sky"), ((1, 2, 3), (4, 5, 6)))
    empty = hashlib.sha256(b"").hexdigest()
    return Manifest(
        spec, Tiling(32, 32, 24, 24), precision="fp32", backend="openvino", sdk="openvino 1", device="cpu",
        input_shape=(1, 3, 32, 32), output_shape=(1, 2, 8, 8), verification=({"step": "engine", "labels": 1.0},),
        created="2026-01-01T00:00:00+00:00", files=dict.fromkeys(FILES, empty),
    ).to_json()  # fmt: skip


def _manifest(data: bytes, folder: Path) -> object:
    """A whole folder with a manifest whose own digest is right, as someone who tampers would leave it."""
    from engines.bundle import FILES, MANIFEST, open_bundle

    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        body.pop("digest", None)
        body["digest"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        data = json.dumps(body).encode()
    for name in FILES:
        _written(b"", folder, name)
    _written(data, folder, MANIFEST)
    bundle = open_bundle(folder)
    bundle.check()
    return bundle


def _engine_seeds(folder: Path) -> list[bytes]:
    from engines.backends.tensorrt.engine_file import Header
    from engines.contract import TensorRTOptions

    header = Header(
        "tensorrt 10.3.0", "Orin sm_87 driver 12.6", TensorRTOptions(), targets=(), model_sha256="0" * 64,
        plan_sha256=hashlib.sha256(b"plan").hexdigest(), plan_bytes=4,
    )  # fmt: skip
    return [json.dumps({**vars(header), "options": header.options.to_json()}).encode()]


def _engine(data: bytes, folder: Path) -> object:
    """The header's JSON, sealed anew; and where the bytes are no header, as the whole file."""
    from engines.backends.tensorrt.engine_file import MAGIC, refuses, unpack

    sealed = MAGIC + len(data).to_bytes(8, "little") + hashlib.sha256(data).digest() + data + b"plan"
    header, _ = unpack(sealed if data[:1] == b"{" else data)
    return refuses(header, "tensorrt 10.3.0", "Orin sm_87 driver 12.6", ahead=False)


def _ranges_seeds(folder: Path) -> list[bytes]:
    from calib.ranges.ranges import Ranges, TensorRange
    from calib.ranges.split import Photograph

    tensor = TensorRange(1.0, -1.0, 1.0, 0.5)
    channels = TensorRange(1.0, -1.0, 1.0, 0.5, channel_amax=(1.0, 0.5), channel_mean=(0.1, -0.1))
    path = folder / "ranges.json"
    seen = (Photograph("images/a.png", "2" * 64), Photograph("b.png", "3" * 64))
    Ranges({"a": tensor, "b": channels}, "percentile", 2, 4, 0, "0" * 64, "1" * 64, seen).save(path)
    return [path.read_bytes()]


def _ranges(data: bytes, folder: Path) -> object:
    from calib.ranges.ranges import Ranges

    return Ranges.load(_written(data, folder, "ranges.json"))


def _field_seeds(folder: Path) -> list[bytes]:
    strides = [{"stride_h": side, "stride_w": side, "share": 1 - side / 64} for side in (8, 16, 32)]
    return [json.dumps({"model": "m", "window": list(WINDOW), "strides": strides}).encode()]


def _field(data: bytes, folder: Path) -> object:
    from engines.plan.predict import Costs, predict
    from engines.plan.strides import choose, shares_of
    from engines.tiling.placement import Tiling

    shares = shares_of(_written(data, folder, "receptive-field.json"), WINDOW)
    costs = Costs("", batch=1, gather_ms=1.0, engine_ms=1.0, stitch_ms=1.0, whole=1.0, peak_bytes=0, held_bytes=0,
                  measured="")  # fmt: skip
    return choose(shares, 0.5, lambda stride: predict(costs, Tiling(*WINDOW, *stride), (1, 2, 8, 8), WINDOW).frame_ms)


def _map_seeds(folder: Path) -> list[bytes]:
    import calib.data.label_map as module

    return [path.read_bytes() for path in sorted((Path(module.__file__).parent / "maps").glob("*.json"))]


def _label_map(data: bytes, folder: Path) -> object:
    from calib.data.label_map import read_label_map

    path = _written(data, folder, "map.json")
    found = read_label_map(str(path))
    return found.prediction_table([key for key, _ in found.prediction or ()][:255]), found.to_json()


def _palette_seeds(folder: Path) -> list[bytes]:
    return [
        b"# label:color_rgb:parts:actions\nignore:0,0,0::\nroad:128,64,128::\n",
        b"road 128 64 128\nignore 0, 0, 0\n",
    ]


def _palette(data: bytes, folder: Path) -> object:
    from calib.data.colours import read_colours
    from engines.spec import ModelSpec

    path = _written(data, folder, "palette.txt")
    spec = ModelSpec("", "", ("road", "sky"), ((1, 2, 3), (4, 5, 6)))
    image = np.array([[(128, 64, 128), (0, 0, 0)]], np.uint8)
    return read_colours(str(path), spec).numbers(spec.classes, None).read(image, path)


def _state() -> dict[str, Any]:
    import torch

    return {"module.a.weight": torch.ones(2, 3), "module.a.bias": torch.zeros(2, dtype=torch.float16)}


def _checkpoint_seeds(folder: Path) -> list[bytes]:
    import torch

    found = []
    for legacy in (False, True):
        for content in (_state(), {"state_dict": _state(), "meta": {"CLASSES": ("a", "b"), "epoch": 3}}):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=not legacy)
            found.append(file.getvalue())
    return found


def _checkpoint(data: bytes, folder: Path) -> object:
    from pipeline.checkpoints.files import read_weights

    return read_weights(_written(data, folder, "weights.pth"))


def _pickle_seeds(folder: Path) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(_checkpoint_seeds(folder)[1])) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]


def _pickle(data: bytes, folder: Path) -> object:
    """The pickle inside an archive that is otherwise sound."""
    whole = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_checkpoint_seeds(folder)[1])) as archive,
        zipfile.ZipFile(whole, "w") as changed,
    ):
        for name in archive.namelist():
            changed.writestr(name, data if name.endswith("data.pkl") else archive.read(name))
    return _checkpoint(whole.getvalue(), folder)


def _safetensors_seeds(folder: Path) -> list[bytes]:
    from safetensors.torch import save

    return [save(_state())]


def _safetensors(data: bytes, folder: Path) -> object:
    from pipeline.checkpoints.files import read_weights

    return read_weights(_written(data, folder, "weights.safetensors"))


def _config_seeds(folder: Path) -> list[bytes]:
    config = {
        "model_type": "segformer", "num_encoder_blocks": 4, "depths": [2, 2, 2, 2], "sr_ratios": [8, 4, 2, 1],
        "hidden_sizes": [32, 64, 160, 256], "patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2],
        "num_attention_heads": [1, 2, 5, 8], "mlp_ratios": [4, 4, 4, 4], "hidden_act": "gelu",
        "decoder_hidden_size": 256, "id2label": {"0": "road", "1": "sky"}, "semantic_loss_ignore_index": 255,
        "palette": [[1, 2, 3], [4, 5, 6]], "do_normalize": True, "rescale_factor": 0.00392, "do_rescale": True,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_reduce_labels": False,
    }  # fmt: skip
    return [json.dumps(config).encode()]


def _config(data: bytes, folder: Path) -> object:
    """One file as the config.json and as the preprocessor_config.json of a Hugging Face folder."""
    from engines.spec import ModelSpec
    from pipeline.checkpoints.files import read_json
    from pipeline.checkpoints.huggingface_config import config_from_json, label_fields
    from pipeline.checkpoints.processor import processor_fields

    config = read_json(_written(data, folder, "preprocessor_config.json"))
    fields = {"classes": ("a", "b"), "palette": ((0, 0, 0),) * 2, **label_fields(config, 2)[0]}
    spec = ModelSpec("segformer", "b0", **fields, **processor_fields(folder))
    return spec.to_json(), config_from_json(config, 2)


def _onnx_seeds(folder: Path) -> list[bytes]:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
    shape = numpy_helper.from_array(np.array([1, 2, -1], np.int64), "t")
    back = numpy_helper.from_array(np.array([1, 2, 16, 16], np.int64), "u")
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "t"], ["c"]),
        helper.make_node("Softmax", ["c"], ["d"], axis=-1),
        helper.make_node("Reshape", ["d", "u"], ["e"]),
        helper.make_node("Resize", ["e", "", "s"], ["logits"], mode="linear"),
    ]
    seeds = []
    for sizes in ([1, 3, *WINDOW], ["n", 3, "h", "w"]):
        graph = helper.make_graph(
            nodes, "net", [helper.make_tensor_value_info("image", TensorProto.FLOAT, sizes)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)], [weight, scales, shape, back],
        )  # fmt: skip
        seeds.append(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    return seeds


def _onnx(data: bytes, folder: Path) -> object:
    from pipeline.graph.given import import_onnx

    return import_onnx(_written(data, folder, "model.onnx"), WINDOW)


def _golden_seeds(folder: Path) -> list[bytes]:
    from engines.proof.golden import Golden

    path = folder / "golden.npz"
    image, labels = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    Golden.sample(image, np.zeros((1, 2, 8, 8), np.float32), labels, "PyTorch").save(path)
    return [path.read_bytes()]


def _golden(data: bytes, _: Path) -> object:
    from engines.proof.golden import Golden

    return Golden.load(data)


def _collector() -> Any:
    from calib.ranges.collector import Collector, Observed

    return Collector([Observed("a"), Observed("b", -1)], {"seed": 0})


def _state_seeds(folder: Path) -> list[bytes]:
    collector = _collector()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    collector.update({"a": values, "b": values}, "x")
    collector.save(folder / "state.npz")
    return [(folder / "state.npz").read_bytes()]


def _calibration_state(data: bytes, folder: Path) -> object:
    """What a killed calibration left: continued, or said to be damaged; and then the ranges can be drawn."""
    collector = _collector()
    if collector.resume(_written(data, folder, "state.npz")) is None:
        collector.ranges("percentile")
    return None


def _geometry_seeds(folder: Path) -> list[bytes]:
    numbers = [(32, 24, 20, 20, 60, 50, blend, 0, 7, 0, 0, 1, 2, 1, 0, 1, 0, 2) for blend in range(3)]
    return [np.array(each, "<u2").tobytes() + bytes(32) for each in numbers]


def _geometry(data: bytes, folder: Path) -> object:
    """Sizes, places, strides and types from the bytes; gather and stitch on exactly sized memory."""
    from tests.fuzz.geometry import exercise

    return exercise(data)


TARGETS = {
    "image": Target(_image_seeds, _image),
    "png": Target(lambda folder: _pictures("RGB", "PNG"), _image, as_png),
    "labels": Target(lambda folder: _pictures("P", "PNG"), _labels, as_png),
    "manifest": Target(_manifest_seeds, _manifest, as_json),
    "engine": Target(_engine_seeds, _engine, as_json),
    "ranges": Target(_ranges_seeds, _ranges, as_json),
    "field": Target(_field_seeds, _field, as_json),
    "label-map": Target(_map_seeds, _label_map, as_json),
    "palette": Target(_palette_seeds, _palette),
    "config": Target(_config_seeds, _config, as_json),
    "checkpoint": Target(_checkpoint_seeds, _checkpoint),
    "pickle": Target(_pickle_seeds, _pickle),
    "safetensors": Target(_safetensors_seeds, _safetensors),
    "onnx": Target(_onnx_seeds, _onnx),
    "calibration": Target(_state_seeds, _calibration_state),
    "golden": Target(_golden_seeds, _golden),
    "geometry": Target(_geometry_seeds, _geometry, sanitized=True),
}
