"""JSON, table, Markdown and picture from recorded rows."""

from __future__ import annotations

import io
import itertools
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.compare.report.figure import class_panel, pareto, picture, trade_off
from pipeline.compare.report.page import page
from pipeline.compare.report.table import WIDTH, markdown, terminal
from pipeline.compare.rows import class_changes
from pipeline.figures.theme import DARK
from tests.pipeline.compare.read_back import comparison_from_json, read
from tests.pipeline.compare.recorded import CLASSES, comparison, pictures, rows, timing

# What scripts may rely on.
KEYS = {"model", "precision", "backend", "executed", "bytes", "miou", "label_agreement", "engine_ms", "frame_ms",
        "speedup", "passed"}  # fmt: skip


@pytest.mark.parametrize("labelled", [True, False])
def test_json_round_trips_and_has_what_scripts_rely_on(labelled: bool, tmp_path: Path) -> None:
    original = comparison(labelled)
    text = json.dumps(original.to_json(), allow_nan=False)
    assert comparison_from_json(json.loads(text)) == original
    body = json.loads(text)
    for row in body["rows"]:
        assert not KEYS - set(row)
    bf16 = body["rows"][2]
    assert {"p50", "p95"} <= set(bf16["engine_ms"]) & set(bf16["frame_ms"])
    assert bf16["label_agreement"] == 0.9986
    assert bf16["executed"] == {"bf16": 0.93, "fp32": 0.07}
    assert body["rows"][-1]["engine_ms"] is None
    assert (bf16["miou"] is None) is not labelled
    (tmp_path / "compare.json").write_text(text)
    assert read(tmp_path / "compare.json") == original


@pytest.mark.parametrize("labelled", [True, False])
def test_the_table_fits_the_terminal_and_names_every_row(labelled: bool) -> None:
    c = comparison(labelled)
    text = terminal(c)
    assert max(map(len, text.splitlines())) <= WIDTH
    for row in c.rows:
        assert sum(line.startswith(row.name) for line in text.splitlines()) >= 1
    assert "pole -3.10" in text or not labelled
    assert "fp16 openvino fails: engine diverges" in text
    assert "ship auto openvino" in " ".join(text.splitlines()[-3:])


def test_the_floor_is_a_column_only_where_it_was_found_and_says_what_it_is() -> None:
    plain = comparison()
    first, *others = plain.rows
    floors = {"AGX Orin 64GB": 6.878, "T4": 4.41}
    planned = replace(plain, rows=(replace(first, gpu_floor_ms=floors, gpu_floor_note="142 kernels"), *others))
    for text in (terminal(plain), markdown(plain), page(plain, pictures())):
        assert "GPU ms" not in text
    for text in (markdown(planned), page(planned, pictures())):
        assert "6.88" in text
        assert "a lower bound on one window on an AGX Orin 64GB, never a latency" in text
    assert "GPU ms >=" in markdown(planned).split("|---")[0]
    assert comparison_from_json(json.loads(json.dumps(planned.to_json()))) == planned


def test_a_table_too_wide_gives_up_columns_not_the_limit() -> None:
    c = comparison()
    slow = [replace(r, timing=timing(9_000.0), backend="onnxruntime-on-something") for r in c.rows]
    text = terminal(replace(c, rows=tuple(slow)))
    assert max(map(len, text.splitlines())) <= WIDTH
    head = text.splitlines()[0]
    assert "seams" not in head
    assert "mIoU" in head


def test_nothing_is_called_minus_zero() -> None:
    assert "-0.00" not in terminal(comparison())
    assert "-0.00" not in markdown(comparison())


@pytest.mark.parametrize("labelled", [True, False])
def test_markdown_tables_are_rectangular(labelled: bool) -> None:
    c = comparison(labelled)
    text = markdown(c)
    tables = [
        list(group)
        for is_table, group in itertools.groupby(text.splitlines(), lambda line: line[:1] == "|")
        if is_table
    ]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert len(tables[0]) == 2 + len(c.rows)
    assert len(tables[2]) == 2 + len(CLASSES)
    assert "compare.png" in text


def test_changes_by_class_are_points_against_the_reference() -> None:
    c = comparison()
    int8 = dict(class_changes(c, c.rows[3]))
    assert int8["pole"] == pytest.approx(-3.1)
    assert class_changes(c, c.rows[3])[0][0] == "pole"
    blind = comparison(labelled=False)
    assert dict(class_changes(blind, blind.rows[3]))["pole"] == pytest.approx(-1.29)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_picture_names_every_measured_row_and_class(labelled: bool) -> None:
    c = comparison(labelled)
    root = ET.fromstring(picture(c, "svg").decode())
    texts = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    for row in c.rows:
        assert any(text.startswith(row.name) for text in texts) is row.measured
    assert set(CLASSES) <= texts
    with Image.open(io.BytesIO(picture(c, "png"))) as image:
        assert image.size[0] > 1.8 * image.size[1] > 1000


def test_labels_of_points_do_not_cover_each_other() -> None:
    from pipeline.compare.report import figure
    from pipeline.figures.canvas import new_figure

    c = comparison()
    crowded = [replace(r, timing=timing(700.0 + 3 * k)) if r.measured else r for k, r in enumerate(c.rows)]
    canvas = new_figure(7.2, 4.8)
    axes = canvas.subplots()
    figure._trade(axes, replace(c, rows=tuple(crowded)), DARK)
    canvas.canvas.draw()
    boxes = [
        text.get_window_extent() for text in axes.texts if " ms" in text.get_text() and "p50" not in text.get_text()
    ]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_panels_alone_have_the_colours_of_the_night() -> None:
    for draw in (trade_off, class_panel):
        with Image.open(io.BytesIO(draw(comparison(), DARK))) as image:
            assert image.convert("RGB").getpixel((2, 2)) == tuple(bytes.fromhex(DARK.paper[1:]))


def test_the_front_holds_exactly_the_rows_that_none_beats() -> None:
    measured = [row for row in rows() if row.measured]
    accuracy = {row.name: row.miou or 0.0 for row in measured}
    ms = {row.name: row.timing.frame.p50 for row in measured if row.timing}
    beaten = {
        a.name
        for a, b in itertools.permutations(measured, 2)
        if ms[b.name] <= ms[a.name] and accuracy[b.name] >= accuracy[a.name] and ms[a.name] != ms[b.name]
    }
    front = [row.name for row in pareto(measured, accuracy)]
    assert set(front) == set(accuracy) - beaten
    assert front == sorted(front, key=lambda name: ms[name])


def test_many_classes_are_cut_to_those_that_change_most() -> None:
    c = comparison()
    names = tuple(f"class {k}" for k in range(150))
    wide = [
        replace(r, class_iou=tuple(0.5 - 0.001 * k * (not r.reference) for k in range(150))) if r.measured else r
        for r in c.rows
    ]
    root = ET.fromstring(picture(replace(c, data_classes=names, rows=tuple(wide)), "svg").decode())
    shown = {
        text
        for node in root.iter("{http://www.w3.org/2000/svg}text")
        if re.fullmatch(r"class \d+", text := "".join(node.itertext()))
    }
    assert shown == {f"class {k}" for k in range(130, 150)}
