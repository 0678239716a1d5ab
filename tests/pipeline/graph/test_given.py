"""The .onnx of other people: whatever its interface, what is imported computes what ONNX Runtime makes of the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import deploy
from engines.backends import get_backend
from engines.contract import PRECISIONS
from engines.errors import DeployError
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.given import import_onnx, read_onnx
from pipeline.graph.onnx_graph import run_onnx

SIDE = 32
WINDOW = (SIDE, SIDE)
node = helper.make_node


def _weight(name: str, *shape: int, kind: type = np.float32) -> onnx.TensorProto:
    values = np.random.default_rng(len(name) + sum(shape)).normal(size=shape) * 0.3
    return numpy_helper.from_array(values.astype(kind), name)


def _ints(name: str, values: Sequence[int], kind: type = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def _save(
    path: Path, nodes: list, weights: list, image: tuple[int, Sequence[Any]], *outputs: tuple[str, int, Any],
    opset: int = 18,
) -> Path:  # fmt: skip
    made = [helper.make_tensor_value_info(*output) for output in outputs]
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info("image", *image)], made, weights)
    version = 8 if opset < 22 else 10
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version), path)
    return path


def _conv(given: str, made: str, weight: str = "w") -> onnx.NodeProto:
    return node("Conv", [given, weight], [made], pads=[1] * 4)


def _window(channels: int = 3, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    drawn = np.random.default_rng(5).standard_normal((1, channels, *WINDOW), dtype=np.float32)
    return drawn * np.float32(scale) + np.float32(shift)


def _own(path: Path, window: np.ndarray, output: str | None = None) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None if output is None else [output], {session.get_inputs()[0].name: window})[0]
    return found


TO_FIRST, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


@pytest.mark.parametrize("sizes", [[1, SIDE, SIDE, 3], [None, None, None, 3], ["n", "h", "w", "c"], [-1, -1, -1, 3]])
def test_channels_last_in_and_out(tmp_path: Path, sizes: list) -> None:
    nodes = [node("Transpose", ["image"], ["t"], perm=TO_FIRST), _conv("t", "c"),
             node("Transpose", ["c"], ["out"], perm=TO_LAST)]  # fmt: skip
    out = [sizes[0], sizes[1], sizes[2], 4]
    path = _save(tmp_path / "m.onnx", nodes, [_weight("w", 4, 3, 3, 3)], (T.FLOAT, sizes), ("out", T.FLOAT, out))
    graph, window = import_onnx(path, WINDOW), _window()
    expected = _own(path, window.transpose(TO_LAST)).transpose(TO_FIRST)
    np.testing.assert_allclose(run_onnx(graph, [window]), expected, atol=1e-6)
    assert [each.op_type for each in graph.model.graph] == ["Conv"]  # the two Transposes are gone


@pytest.mark.parametrize("flat", [False, True])
def test_a_softmax_over_the_last_axis_is_cut(tmp_path: Path, flat: bool) -> None:
    """Keras: channels last, or all pixels in one axis, and then a softmax."""
    nodes = [_conv("image", "c"), node("Transpose", ["c"], ["t"], perm=TO_LAST)]
    if flat:
        nodes.append(node("Reshape", ["t", "size"], ["r"]))
    nodes.append(node("Softmax", ["r" if flat else "t"], ["out"], axis=-1))
    out = [1, SIDE * SIDE, 4] if flat else [1, SIDE, SIDE, 4]
    weights = [_weight("w", 4, 3, 3, 3), _ints("size", [1, SIDE * SIDE, 4])]
    path = _save(tmp_path / "m.onnx", nodes, weights, (T.FLOAT, [1, 3, *WINDOW]), ("out", T.FLOAT, out))
    source, window = load_source(str(path), WINDOW, SourceOptions()), _window()
    assert "Softmax cut" in " ".join(source.remarks)
    logits = source.logits([window])
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    expected = _own(path, window).reshape(1, SIDE, SIDE, 4).transpose(TO_FIRST)
    np.testing.assert_allclose(exponentials / exponentials.sum(1, keepdims=True), expected, atol=1e-6)


def test_a_map_without_its_one_channel_gets_it_back(tmp_path: Path) -> None:
    nodes = [_conv("image", "c"), node("Squeeze", ["c", "axis"], ["out"])]
    weights = [_weight("w", 1, 3, 3, 3), _ints("axis", [1])]
    path = _save(tmp_path / "m.onnx", nodes, weights, (T.FLOAT, [1, 3, *WINDOW]), ("out", T.FLOAT, [1, *WINDOW]))
    window = _window()
    np.testing.assert_allclose(run_onnx(import_onnx(path, WINDOW), [window])[0], _own(path, window), atol=1e-6)


@pytest.mark.parametrize("dims", [("n", "h", "w"), (-1, -1, -1), (None, None, None)])
@pytest.mark.parametrize("said", [True, False], ids=["with a rank", "without"])
def test_shapes_that_are_computed_at_run_time(tmp_path: Path, dims: tuple, said: bool) -> None:
    """Paddle's way: through Shape, int32, Slice and Concat."""
    slices = [
        node("Slice", ["s32", f"a{i}", f"a{i + 1}", "a0"], [name]) for i, name in ((0, "n"), (2, "hh"), (3, "ww"))
    ]
    nodes = [
        _conv("image", "c"), node("Shape", ["c"], ["s"]), node("Cast", ["s"], ["s32"], to=T.INT32), *slices,
        node("Concat", ["n", "g", "g", "hh", "ww"], ["t"], axis=0), node("Cast", ["t"], ["tl"], to=T.INT64),
        node("Reshape", ["c", "tl"], ["r"]), node("Transpose", ["r"], ["x"], perm=[0, 2, 1, 3, 4]),
        node("Concat", ["n", "four", "hh", "ww"], ["u"], axis=0), node("Cast", ["u"], ["ul"], to=T.INT64),
        node("Reshape", ["x", "ul"], ["out"]),
    ]  # fmt: skip
    weights = [_weight("w", 4, 3, 3, 3), *(_ints(f"a{i}", [i]) for i in range(5)), _ints("g", [2], np.int32),
               _ints("four", [4], np.int32)]  # fmt: skip
    sizes = [dims[0], 3, *dims[1:]]
    out = [dims[0], 4, *dims[1:]] if said else None
    path = _save(tmp_path / "m.onnx", nodes, weights, (T.FLOAT, sizes), ("out", T.FLOAT, out), opset=11)
    graph, window = import_onnx(path, WINDOW), _window()
    assert graph.output_shape == (1, 4, *WINDOW)
    np.testing.assert_allclose(run_onnx(graph, [window]), _own(path, window), atol=1e-6)


def test_one_of_several_outputs(tmp_path: Path) -> None:
    nodes = [_conv("image", "main"), node("Relu", ["main"], ["r"]), _conv("image", "aux", "ww")]
    weights = [_weight("w", 4, 3, 3, 3), _weight("ww", 5, 3, 3, 3)]
    outputs = [("main", T.FLOAT, [1, 4, *WINDOW]), ("aux", T.FLOAT, [1, 5, *WINDOW])]
    path = _save(tmp_path / "m.ONNX", nodes, weights, (T.FLOAT, [1, 3, *WINDOW]), *outputs)
    window = _window()
    with pytest.raises(DeployError, match=r"2 outputs.* main \(1, 4, 32, 32\), aux .*give --output-name NAME"):
        load_source(str(path), WINDOW, SourceOptions())
    with pytest.raises(DeployError, match="--output-name other, expected one of its outputs: main"):
        load_source(str(path), WINDOW, SourceOptions(output_name="other"))
    for name in ("main", "aux", "r"):  # what is computed inside may be asked for, too
        source = load_source(str(path), WINDOW, SourceOptions(output_name=name))
        expected = np.maximum(_own(path, window, "main"), 0) if name == "r" else _own(path, window, name)
        np.testing.assert_allclose(source.logits([window]), expected, atol=1e-6)
    with pytest.raises(DeployError, match=r"--output-name main: got demo, expected an \.onnx"):
        load_source("demo", WINDOW, SourceOptions(output_name="main"))


@pytest.mark.parametrize("kind", [T.FLOAT16, T.BFLOAT16, T.DOUBLE], ids=["half", "bfloat16", "double"])
def test_halves_and_doubles_are_read_as_float32(tmp_path: Path, kind: int) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 3, 3)) * 0.3
    weight = helper.make_tensor("w", kind, values.shape, values.ravel().tolist())
    path = _save(tmp_path / "m.onnx", [_conv("image", "out")], [weight], (kind, [1, 3, *WINDOW]),
                 ("out", kind, [1, 4, *WINDOW]), opset=22)  # fmt: skip
    given, window = read_onnx(path, WINDOW), _window()
    stored = numpy_helper.to_array(weight).astype(np.float64)
    padded = np.pad(window[0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = np.einsum("chwij,kcij->khw", patches, stored)
    np.testing.assert_allclose(run_onnx(given.graph, [window])[0], expected, rtol=1e-5, atol=1e-5)
    assert any(line.startswith("stored in") for line in given.remarks)


def test_what_halves_decide_by_rounding_is_no_fault_of_the_reading(tmp_path: Path) -> None:
    """A step at a number that is no half: the file itself takes 2 % of the pixels for the other side of it."""
    exact = np.float32(0.4056)
    step = np.float16(exact)  # below it
    nodes = [node("Gather", ["image", "first"], ["x"], axis=1), node("Sub", ["x", "step"], ["d"]),
             node("Mul", ["d", "gain"], ["m"]), node("Sub", ["m", "three"], ["s"]), node("Sigmoid", ["s"], ["p"]),
             node("Mul", ["p", "one"], ["f"]), node("Sub", ["f", "half"], ["e"]), node("Mul", ["x", "five"], ["y"]),
             node("Add", ["y", "e"], ["z"]), node("Concat", ["y", "z"], ["out"], axis=1)]  # fmt: skip
    numbers = {"step": step, "gain": 6e4, "three": 3, "one": 1, "half": 0.5, "five": 5}
    weights = [numpy_helper.from_array(np.array(value, np.float16), name) for name, value in numbers.items()]
    path = _save(tmp_path / "m.onnx", nodes, [*weights, _ints("first", [0])], (T.FLOAT16, [1, 3, *WINDOW]),
                 ("out", T.FLOAT16, [1, 2, *WINDOW]))  # fmt: skip
    window = _window()
    window[0, 0, 0, :20] = exact
    assert step < exact
    assert (load_source(str(path), WINDOW, SourceOptions()).logits([window]).argmax(1)[0, 0, :20] == 1).all()
    assert (_own(path, window.astype(np.float16)).argmax(1)[0, 0, :20] == 0).all()


@pytest.mark.parametrize("precision", [each for each in PRECISIONS if each != "fp8"])
def test_a_network_of_halves_builds_in_every_precision(tmp_path: Path, precision: str, photos: Path) -> None:
    nodes = [_conv("image", "c"), node("Relu", ["c"], ["r"]), _conv("r", "d", "w2"), _conv("d", "out", "w3")]
    shapes = {"w": (32, 3, 3, 3), "w2": (32, 32, 3, 3), "w3": (4, 32, 3, 3)}
    weights = [_weight(name, *shape, kind=np.float16) for name, shape in shapes.items()]
    path = _save(tmp_path / "m.onnx", nodes, weights, (T.FLOAT16, [1, 3, *WINDOW]),
                 ("out", T.FLOAT16, [1, 4, *WINDOW]))  # fmt: skip
    if get_backend("openvino").supports(precision) is not None:
        pytest.skip(f"this CPU has no {precision}")
    argv = ["build-engine", str(path), "-o", str(tmp_path / "b"), "--tile", str(SIDE), "--backend", "openvino"]
    assert deploy.main([*argv, "--precision", precision, "--calib", str(photos)]) == 0


def test_nodes_may_stand_in_any_order(tmp_path: Path) -> None:
    """As converters to halves leave them: the cast of the image at the end."""
    nodes = [
        _conv("half", "c"),
        node("Cast", ["c"], ["out"], to=T.FLOAT),
        node("Cast", ["image"], ["half"], to=T.FLOAT16),
    ]
    weights = [_weight("w", 4, 3, 3, 3, kind=np.float16)]
    path = _save(tmp_path / "m.onnx", nodes, weights, (T.FLOAT, [1, 3, *WINDOW]), ("out", T.FLOAT, [1, 4, *WINDOW]))
    got = load_source(str(path), WINDOW, SourceOptions()).logits([_window()])
    np.testing.assert_allclose(got, _own(path, _window()), atol=2e-2)


@pytest.mark.parametrize("last", [False, True])
def test_a_network_that_takes_bytes_normalises_them_itself(tmp_path: Path, last: bool) -> None:
    nodes = [
        node("Cast", ["t" if last else "image"], ["f"], to=T.FLOAT),
        node("Mul", ["f", "k"], ["m"]),
        _conv("m", "out"),
    ]
    if last:
        nodes.insert(0, node("Transpose", ["image"], ["t"], perm=TO_FIRST))
    weights = [_weight("w", 4, 3, 3, 3), numpy_helper.from_array(np.float32(1 / 255), "k")]
    sizes = [1, *WINDOW, 3] if last else [1, 3, *WINDOW]
    path = _save(tmp_path / "m.onnx", nodes, weights, (T.UINT8, sizes), ("out", T.FLOAT, [1, 4, *WINDOW]))
    source = load_source(str(path), WINDOW, SourceOptions())
    assert (source.spec.mean, source.spec.std) == ((0, 0, 0), (1, 1, 1))
    assert "normalises pixels of 0..255 itself" in " ".join(source.remarks)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, *WINDOW), np.uint8)
    expected = _own(path, pixels.transpose(TO_LAST) if last else pixels)
    graph, _ = source.export()
    np.testing.assert_allclose(run_onnx(graph, [pixels.astype(np.float32)]), expected, atol=1e-5)
    assert {each.op_type for each in graph.model.graph} <= {"Mul", "Conv"}  # no engine has to cast to bytes and back
    with pytest.raises(DeployError, match=r"--mean, --std: .*takes pixels as bytes"):
        load_source(str(path), WINDOW, SourceOptions(mean=(1, 2, 3)))


NORMALISATIONS = {
    "x / 255": ([("Div", 255.0)], 255.0),
    "x / 127.5 - 1": ([("Mul", 1 / 127.5), ("Sub", 1.0)], 255.0),
    "Caffe": ([("Sub", [123.68, 116.78, 103.94])], 255.0),
    "ImageNet of 0..255": ([("Sub", [123.675, 116.28, 103.53]), ("Div", [58.395, 57.12, 57.375])], 255.0),
    "ImageNet of 0..1": ([("Sub", [0.485, 0.456, 0.406]), ("Div", [0.229, 0.224, 0.225])], 1.0),
    "2 x - 1": ([("Mul", 2.0), ("Add", -1.0)], 1.0),
    "none": ([], None),
    "an empty one": ([("Mul", 1.0)], None),
}


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalisation_inside_the_graph_is_seen(tmp_path: Path, name: str) -> None:
    steps, pixels = NORMALISATIONS[name]
    nodes, weights, last = [], [_weight("w", 4, 3, 3, 3)], "image"
    for index, (op, value) in enumerate(steps):
        array = np.array(value, np.float32).reshape(-1, 1, 1) if isinstance(value, list) else np.float32(value)
        weights.append(numpy_helper.from_array(array, f"k{index}"))
        nodes.append(node(op, [last, f"k{index}"], [f"n{index}"]))
        last = f"n{index}"
    path = _save(tmp_path / "m.onnx", [*nodes, _conv(last, "out")], weights, (T.FLOAT, [1, 3, *WINDOW]),
                 ("out", T.FLOAT, [1, 4, *WINDOW]))  # fmt: skip
    spec = load_source(str(path), WINDOW, SourceOptions()).spec
    scale = None if pixels is None else 255.0 / pixels
    assert (spec.mean, spec.std) == (((0,) * 3, (scale,) * 3) if scale else (spec.mean, (58.395, 57.12, 57.375)))
    given = load_source(str(path), WINDOW, SourceOptions(mean=(1, 2, 3), std=(4, 5, 6))).spec
    assert (given.mean, given.std) == ((1, 2, 3), (4, 5, 6))  # the user knows better


@pytest.mark.parametrize("opset", range(7, 26))
def test_every_opset(tmp_path: Path, opset: int) -> None:
    """Seven to 25: convolution, normalisation, an upsampling as each has it, a shape that is computed."""
    weights = [_weight("w", 8, 3, 3, 3), *(_weight(name, 8) for name in ("b", "m")), _weight("w2", 4, 8, 1, 1)]
    weights += [
        numpy_helper.from_array(np.full(8, value, np.float32), name) for name, value in (("g", 1.2), ("v", 0.8))
    ]
    nodes = [node("Conv", ["image", "w"], ["c"], pads=[1] * 4, strides=[2, 2]),
             node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]), node("Relu", ["n"], ["r"]),
             node("Conv", ["r", "w2"], ["s"])]  # fmt: skip
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    if opset < 9:
        nodes.append(node("Upsample", ["s"], ["out"], mode="linear", scales=[1.0, 1.0, 2.0, 2.0]))
    elif opset < 11:
        nodes.append(node("Upsample" if opset == 9 else "Resize", ["s", "scales"], ["out"], mode="linear"))
    else:
        roi = numpy_helper.from_array(np.zeros(0, np.float32), "roi")
        weights.append(roi)
        nodes.append(node("Resize", ["s", "roi", "scales"], ["out"], mode="linear"))
    weights += [scales] if opset >= 9 else []
    sizes = ["n", 3, "h", "w"]
    path = _save(
        tmp_path / "m.onnx", nodes, weights, (T.FLOAT, sizes), ("out", T.FLOAT, ["n", 4, "h", "w"]), opset=opset
    )
    graph, window = import_onnx(path, WINDOW), _window()
    expected = _own(path, window)
    np.testing.assert_allclose(run_onnx(graph, [window]), expected, atol=1e-5 * np.abs(expected).max())


def test_borders_that_are_not_told_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("Conv", ["image", "w"], ["c"]), node("LRN", ["c"], ["out"], size=3)]
    path = _save(tmp_path / "m.onnx", nodes, [_weight("w", 4, 3, 5, 5)],
                 (T.FLOAT, [1, 3, *WINDOW]), ("out", T.FLOAT, [1, 4, 28, 28]))  # fmt: skip
    assert deploy.main(["build-engine", str(path), "-o", str(tmp_path / "b"), "--tile", str(SIDE)]) == 2
    assert "got 28x28 logits for a 32x32 window" in capsys.readouterr().err


def test_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [_conv("image", "out")], [_weight("w", 4, 3, 3, 3)],
                 (T.FLOAT, [1, 3, *WINDOW]), ("out", T.FLOAT, [1, 4, *WINDOW]))  # fmt: skip
    expected = _own(path, _window())
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.testing.assert_allclose(run_onnx(import_onnx(path, WINDOW), [_window()]), expected, atol=1e-6)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(DeployError, match=r"m\.onnx"):
        import_onnx(path, WINDOW)


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n")
    with pytest.raises(DeployError, match=r"is a Git LFS pointer, not the file; fetch it with: git lfs pull"):
        import_onnx(tmp_path / "m.onnx", WINDOW)


def test_operators_of_a_runtime_are_named(tmp_path: Path) -> None:
    nodes = [_conv("image", "c"), node("FastGelu", ["c"], ["out"], domain="com.microsoft")]
    path = _save(tmp_path / "m.onnx", nodes, [_weight("w", 4, 3, 3, 3)], (T.FLOAT, [1, 3, *WINDOW]),
                 ("out", T.FLOAT, [1, 4, *WINDOW]))  # fmt: skip
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    with pytest.raises(DeployError, match=r"not ONNX's: com\.microsoft\.FastGelu; expected a file as an exporter"):
        import_onnx(path, WINDOW)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    from calib.data.scenes import render

    folder = tmp_path_factory.mktemp("photos")
    for seed in range(4):
        Image.fromarray(render(seed, SIDE, SIDE).image).save(folder / f"{seed}.png")
    return folder
