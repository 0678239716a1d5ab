"""A user's module that ends in probabilities or labels, used at the logits before them; see `pipeline.graph.endings`.

What torch.export captured of the module tells where they are.  The module itself stays: whenever logits are asked for,
the captured ending is applied to them and compared with what the module says, so that a proof of the logits is a proof
of the module.
"""

from __future__ import annotations

import operator
from math import exp

import torch
from torch import Tensor, fx, nn

from engines.errors import DeployError, GateError
from pipeline.graph.endings import LEAST, Ending, competing, logarithm
from pipeline.graph.export import trace

_PROBABILITIES = {"softmax": "softmax", "_softmax": "softmax", "log_softmax": "log_softmax",
                  "_log_softmax": "log_softmax", "sigmoid": "sigmoid"}  # fmt: skip
_COPIES = frozenset({"to", "_to_copy", "contiguous", "clone", "alias", "detach", "dropout"})
_PLACES = _COPIES | {"squeeze", "unsqueeze", "view", "reshape"}
_RESIZES = frozenset({"upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest2d", "_upsample_bilinear2d_aa"})
_COMPARISONS = frozenset({"gt", "ge"})
_DECISIONS = _COMPARISONS | {"argmax", "argmin", "topk", "lt", "le", "eq", "round", "one_hot"}
_LAYERS = frozenset({"conv2d", "convolution", "conv_transpose2d", "linear", "matmul", "bmm", "addmm", "mm"})
_LABELS = 0.999  # that must be equal: both are the same PyTorch on the same input


class WithoutEnding(nn.Module):
    """`inner` without what it does after its logits.  parts: x -> (logits or probabilities, what inner returns).

    undone: ``softmax`` or ``sigmoid`` where the former are probabilities, of which the logarithm or log-odds is taken.
    """

    def __init__(self, inner: nn.Module, parts: fx.GraphModule, undone: str = "") -> None:
        super().__init__()
        self.inner, self.parts, self._undone = inner, parts, undone

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) -> logits.  Raises GateError where the ending applied to them is not what `inner` returns."""
        logits, end = self.parts(x)
        if not torch.compiler.is_exporting():
            _require_same(end, self.inner(x))
        if self._undone:
            log = logits.clamp_min(LEAST).log()
            logits = log - (1 - logits).clamp_min(LEAST).log() if self._undone == "sigmoid" else log
        return logits  # type: ignore[no-any-return]


def cut_module(
    module: nn.Module, window: tuple[int, int], output: Tensor, channels: int = 3
) -> tuple[nn.Module, Ending | None]:
    """`module`, or what returns its logits.  output: what it returns for some window (1, channels, *window).

    Raises DeployError where it returns labels that no logits can be found for.
    """
    if not _may_be_final(output):
        return module, None
    parts = trace(module, window, channels).module()
    assert isinstance(parts, fx.GraphModule)
    (end,) = parts.graph.output_node().all_input_nodes
    found = _find(end)
    if found is None:
        _refuse_decisions(end)
        return module, None
    logits, undone, ending = found
    return WithoutEnding(module, _with_outputs(parts, logits, end), undone), ending


def _may_be_final(output: Tensor) -> bool:
    """Probabilities, their logarithms, or labels: values that logits hardly take."""
    if not output.is_floating_point():
        return True
    low, high = float(output.min()), float(output.max())
    return (low >= 0 and high <= 1) or high <= 0 or bool((output == output.round()).all())


def _with_outputs(parts: fx.GraphModule, logits: fx.Node, end: fx.Node) -> fx.GraphModule:
    graph = parts.graph
    for node in list(graph.nodes):  # of torch.export: that the input is as it was, and types as they were
        if (node.op, node.target) == ("call_module", "_guards_fn") or _op(node) == "_assert_tensor_metadata":
            graph.erase_node(node)
    graph.output_node().args = ((logits, end),)
    graph.set_codegen(fx.graph.CodeGen())
    graph.eliminate_dead_code()
    return fx.GraphModule(parts, graph)


def _find(end: fx.Node) -> tuple[fx.Node, str, Ending] | None:
    """Where the logits are, what is to be undone of them, and the ending in words."""
    links, node = _walk(end, _PLACES)
    scores = _scores(node)
    if scores is not None and _same_map(links, node):
        before = _probabilities(scores)
        if before is None:
            return scores, "", Ending("argmax cut, the scores before it are used")
        logits, undone, ending = before
        return logits, undone, Ending(f"argmax cut; before it {ending.what}")
    if _op(node) in _COMPARISONS and _same_map(links, node):
        return _comparison(node)
    return _squeezed(links, node) or _probabilities(end)


def _squeezed(links: list[fx.Node], node: fx.Node) -> tuple[fx.Node, str, Ending] | None:
    """One sigmoid, whose axis of channels may have been taken away."""
    logits = node.args[0] if _op(node) == "sigmoid" else None
    if not isinstance(logits, fx.Node) or _value(logits).shape[1:2] != (1,) or _value(logits).ndim != 4:
        return None
    if not _same_map(links, node) or not all(_value(link).is_floating_point() for link in links):
        return None
    return logits, "", Ending("sigmoid cut, the logits before it are used")


def _probabilities(end: fx.Node) -> tuple[fx.Node, str, Ending] | None:
    links, node = _walk(end, _COPIES | _RESIZES)
    op = _PROBABILITIES.get(_op(node))
    if op is None or not all(_value(link).is_floating_point() for link in links):
        return None
    if op != "sigmoid" and int(node.args[1]) % _value(node).ndim != 1:  # type: ignore[arg-type]
        return None
    more = competing(_value(end).shape[1]) if op == "sigmoid" else ""
    if any(_op(link) in _RESIZES for link in links):
        return None if op == "log_softmax" else (end, op, Ending(logarithm(op.capitalize()) + more))
    logits = node.args[0]
    assert isinstance(logits, fx.Node)
    return logits, "", Ending(f"{op} cut, the logits before it are used{more}")


def _scores(node: fx.Node) -> fx.Node | None:
    """Of which `node` is the argmax over channels."""
    if node.target is operator.getitem and node.args[1] == 1 and _op(node.args[0]) == "max":  # type: ignore[arg-type]
        node = node.args[0]  # type: ignore[assignment]
    elif _op(node) != "argmax":
        return None
    scores = node.args[0]
    if len(node.args) < 2 or node.args[1] is None or not isinstance(scores, fx.Node):
        return None
    return scores if _value(scores).ndim == 4 and int(node.args[1]) % 4 == 1 else None  # type: ignore[arg-type]


def _comparison(node: fx.Node) -> tuple[fx.Node, str, Ending] | None:
    scores, number = node.args
    if not isinstance(number, float | int) or not isinstance(scores, fx.Node) or _value(scores).shape[1:2] != (1,):
        return None
    sigmoid = _op(scores) == "sigmoid"
    threshold = float(number) if sigmoid else 1 / (1 + exp(-number))
    logits = scores.args[0] if sigmoid else scores
    if not 0 < threshold < 1 or not isinstance(logits, fx.Node):
        return None
    return (
        logits,
        "",
        Ending(f"comparison cut, the logits before it are used at its threshold, {threshold:g}", threshold),
    )


def _same_map(links: list[fx.Node], node: fx.Node) -> bool:
    """Whether the links leave a map (h, w) in its order, however many axes of length one are around it."""
    lengths = [[length for length in _value(each).shape if length > 1] for each in (node, *links)]
    return all(each == lengths[0] for each in lengths)


def _walk(node: fx.Node, through: frozenset[str]) -> tuple[list[fx.Node], fx.Node]:
    links = []
    while _op(node) in through and isinstance(node.args[0], fx.Node):
        links.append(node)
        node = node.args[0]
    return links, node


def _op(node: fx.Node) -> str:
    """``softmax`` for ``aten.softmax.int``."""
    parts = str(node.target).split(".")
    return parts[1] if node.op == "call_function" and parts[0] == "aten" else ""


def _value(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    return value[1] if isinstance(value, tuple | list) else value  # type: ignore[no-any-return]


def _refuse_decisions(end: fx.Node) -> None:
    """Labels that are made in a way that was not recognised must not pass for logits."""
    queue, seen = [end], set()
    while queue:
        node = queue.pop()
        if node in seen or _op(node) in _LAYERS:
            continue
        seen.add(node)
        if _op(node) in _DECISIONS:
            raise DeployError(
                f"model: ends in labels ({_op(node)}, and what follows it), expected logits or probabilities, "
                "which can be averaged over windows; return them from the module"
            )
        queue += node.all_input_nodes


def _require_same(got: Tensor, expected: Tensor) -> None:
    same = got.shape == expected.shape
    if same and not expected.is_floating_point():
        same = float((got == expected).float().mean()) >= _LABELS
    elif same:
        same = torch.allclose(got.float(), expected.float(), rtol=1e-3, atol=1e-5)
    if not same:
        raise GateError(
            "model: its ending, applied to the logits that torch.export found, is not what the module returns; "
            "return the logits themselves from the module"
        )
