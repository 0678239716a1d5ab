"""What a change of opset does to values and names: operators of old opsets, with ONNX Runtime on both sides.

The converter of onnx does the work; where it changes the function, or a tensor's name, `at_opset` mends or refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from engines.errors import DeployError
from pipeline.graph.onnx_graph import open_onnx
from pipeline.graph.proto import at_opset
from pipeline.graph.surgery import opset
from tests.pipeline.graph.drawn import floats, seeds
from tests.pipeline.graph.old_kinds import KINDS, OLDEST, Old

TARGETS = (13, 21, 22)  # FP16 and the scales of Q/DQ; scales in half types; BF16
# Softmax over several axes becomes three nodes; ONNX's shape inference of pools was mended at 19 and 22.
REFUSED = "Hardmax over all axes|Inferred shape and existing shape differ"


def names(model: ir.Model) -> set[str]:
    return {str(value.name) for node in model.graph for value in node.outputs}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_values_and_names_stay(kind: Callable[[Old], str]) -> None:
    oldest, newest = KINDS[kind]
    converted = refused = 0
    for seed in seeds(25):
        rng = np.random.default_rng([seed, list(KINDS).index(kind)])
        shape = (1, *(int(side) for side in rng.integers((2, 3, 3), (5, 6, 6))))
        net = Old(int(rng.integers(oldest, newest + 1)), shape, rng)
        model, x = net.model(kind(net)), rng.standard_normal(shape, np.float32)
        expected = open_onnx(model).run(None, {"image": x})[0]
        for target in (target for target in TARGETS if target > net.version):
            where = f"seed {seed}, {net.version} to {target}"
            try:
                copy = at_opset(model, target)
            except DeployError as error:
                if not re.search(REFUSED, str(error)):
                    raise
                refused += 1
                continue
            converted += 1
            assert opset(copy) == target
            assert names(model) <= names(copy), where
            assert [value.name for value in copy.graph.outputs] == ["logits"], where
            got = open_onnx(copy).run(None, {"image": x})[0]
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=where)
    assert converted > refused


@pytest.mark.parametrize("version", range(OLDEST, 11))
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_an_upsampling_inside_the_graph_is_asymmetric(mode: str, version: int) -> None:
    """Found by these: only one that was the graph's output was told so, since the converter renames all others."""
    net = Old(version, (1, 1, 2, 5), np.random.default_rng(0))
    scales = [1.0, 1.0, 1.0, 1.25]
    if version < 9:
        out = net.add("Upsample", "image", scales=scales, mode=mode)
    else:
        out = net.add("Upsample" if version == 9 else "Resize", "image", net.constant(floats(*scales)), mode=mode)
    model = at_opset(net.model(net.add("Relu", out)), 13)
    row = open_onnx(model).run(None, {"image": np.arange(10, dtype=np.float32).reshape(1, 1, 2, 5)})[0][0, 0, 0]
    # Output pixel i lies at i / 1.25 of the input.
    np.testing.assert_allclose(row, [0, 0.8, 1.6, 2.4, 3.2, 4.0] if mode == "linear" else [0, 0, 1, 2, 3, 4], atol=1e-6)


@pytest.mark.parametrize("axis", [{"axis": 1}, {}])
def test_hardmax_keeps_its_axis(axis: dict[str, int]) -> None:
    """Over the channels of one pixel it has one meaning at every opset; over a map it is refused."""
    net = Old(11, (1, 5, 1, 1), np.random.default_rng(0))
    x = np.array([3, 1, 4, 1, 5], np.float32).reshape(1, 5, 1, 1)
    model = at_opset(net.model(net.add("Hardmax", "image", **axis)), 13)
    assert open_onnx(model).run(None, {"image": x})[0].reshape(-1).tolist() == [0, 0, 0, 0, 1]
    net = Old(11, (1, 5, 2, 2), np.random.default_rng(0))
    with pytest.raises(DeployError, match="Hardmax over all axes from 1"):
        at_opset(net.model(net.add("Hardmax", "image", **axis)), 13)
