"""The report of a run, whole or in totals."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from engines.errors import DeployError
from engines.report.rows import IMAGE, ImageReport, InputRow, Rows, RunReport

_CLASSES = tuple(f"class {index}" for index in range(19))


def _row(index: int) -> InputRow:
    name, mask = f"photos/{index}.png", f"masks/{index}.png"
    if index % 100 == 7:
        return InputRow.failed(IMAGE, name, Path(mask), DeployError(f"image {name}: an empty file"))
    if index % 100 == 8:
        return InputRow(IMAGE, name, mask)
    times = np.random.default_rng(index).uniform(1, 100, 6)
    parts = dict(zip(("read_ms", "gather_ms", "engine_ms", "stitch_ms", "write_ms", "total_ms"), times, strict=True))
    report = ImageReport(name, mask, 2048, 1024, index % 5, {each: float(times[0]) for each in _CLASSES}, **parts)
    return InputRow(IMAGE, name, mask, report, note="" if index % 50 else f"{name}: one band, taken for three")


def _of(count: int, *, whole: bool) -> RunReport:
    rows, told = Rows(lambda row: told.append(row.input), whole=whole), list[str]()
    for index in reversed(range(count)):  # as they end, which is not how they began
        rows.keep(_row(index))
    assert len(told) == count
    return rows.report((f"photos/{index}.png" for index in range(count)), seconds=3.0)


def test_totals_say_what_the_whole_report_says() -> None:
    whole, totals = _of(300, whole=True), _of(300, whole=False)
    assert str(whole) == str(totals)
    assert str(whole).startswith("294 image(s), ")
    assert (whole.failed, whole.notes, whole.existing) == (totals.failed, totals.notes, totals.existing)
    assert list(whole.failed) == [f"photos/{index}.png" for index in (7, 107, 207)]  # in the order of the inputs
    found = whole.to_json()
    assert [image["input"] for image in found["images"]][:3] == ["photos/0.png", "photos/1.png", "photos/2.png"]
    assert "totals" not in found


def test_totals_take_no_room_to_speak_of() -> None:
    def taken(*, whole: bool) -> int:
        tracemalloc.start()
        report = _of(2000, whole=whole)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del report
        return held

    assert 10 * taken(whole=False) < taken(whole=True)
