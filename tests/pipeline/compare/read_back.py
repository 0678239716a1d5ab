"""A comparison as it was before it was written to compare.json: the inverse of `Comparison.to_json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.measure.bench import Stats, Timing
from engines.tiling.device import PARTS
from pipeline.compare.rows import SCHEMA, Comparison, Row
from pipeline.compare.tally import MapAgreement


def read(path: Path) -> Comparison:
    return comparison_from_json(json.loads(path.read_text()))


def comparison_from_json(data: Mapping[str, Any]) -> Comparison:
    body = dict(data)
    assert body.pop("schema") == SCHEMA
    body.pop("passed")
    for key in ("classes", "data_classes"):
        body[key] = tuple(body[key])
    body["rows"] = tuple(_row(row) for row in body["rows"])
    return Comparison(**body)


def _row(data: Mapping[str, Any]) -> Row:
    body = dict(data)
    labels, edges, seams, by_class = (body.pop(f"{name}_agreement") for name in ("label", "edge", "seam", "class"))
    times = {part: body.pop(f"{part}_ms") for part in ("frame", *PARTS)}
    if labels is not None:
        body["agreement"] = MapAgreement(labels, edges, seams, tuple(by_class))
    if body["windows"] is not None:
        body["timing"] = Timing(**{part: Stats(**values) for part, values in times.items()})
        body["frame_size"] = tuple(body["frame_size"])
    if body["class_iou"] is not None:
        body["class_iou"] = tuple(body["class_iou"])
    body["log"] = tuple((step, text) for step, text in body["log"])
    return Row(**{**body, "verification": tuple(body["verification"]), "reasons": tuple(body["reasons"])})
