"""Per-layer truth: what each layer of an engine really runs in on this device, and its share of the time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """One layer as the SDK runs it, fusions included.  share: of the summed layer time, 0..1."""

    name: str
    type: str
    precision: str
    share: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def from_microseconds(rows: Iterable[tuple[str, str, str, float]]) -> list[Layer]:
    """(name, type, precision, microseconds) -> layers."""
    timed = list(rows)
    total = sum(row[3] for row in timed) or 1.0
    return [Layer(name, kind, precision, time / total) for name, kind, precision, time in timed]


def executed(layers: Sequence[Layer]) -> dict[str, float]:
    """Share of the layer time by precision, largest first: ``{"int8": 0.52, "bf16": 0.4, "fp32": 0.08}``."""
    shares: dict[str, float] = {}
    for layer in layers:
        shares[layer.precision] = shares.get(layer.precision, 0.0) + layer.share
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def table(layers: Sequence[Layer], precision: str) -> str:
    """The layers in order, then the share of time by type and precision, for a terminal."""
    lines = [f"{layer.precision:6}{100 * layer.share:6.2f} %  {layer.type:16}{layer.name}" for layer in layers]
    by_type: dict[tuple[str, str], float] = {}
    for layer in layers:
        key = (layer.type, layer.precision)
        by_type[key] = by_type.get(key, 0.0) + layer.share
    lines.append("")
    for (kind, type_precision), share in sorted(by_type.items(), key=lambda item: -item[1]):
        lines.append(f"{type_precision:6}{100 * share:6.2f} %  all {kind}")
    text = ", ".join(f"{name} {100 * share:.1f} %" for name, share in executed(layers).items())
    lines.append(f"executed (built as {precision}): {text} of the layer time")
    return "\n".join(lines)
