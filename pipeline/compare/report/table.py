"""A comparison as text: the table on a terminal, and compare.md."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from engines.tiling.device import PARTS
from pipeline.compare.augment import gains
from pipeline.compare.gpu_floor import EXPLAINED, SHOWN
from pipeline.compare.rows import Comparison, Row, class_changes, drop, percent

WIDTH = 120
FLOOR = "GPU ms >="  # the column's title
CHANGES_SHOWN = 6


def terminal(comparison: Comparison) -> str:
    """At most WIDTH columns: the table, what changed most by class, why a row fails, and the verdict."""
    table = _fitting(comparison)
    lines = aligned(table)
    notes = [f"ms: p50/p95 of {comparison.rounds} interleaved rounds on the same frames; {_frame(comparison)}"]
    if parts_note(comparison):
        notes.append(f"engine ms:{parts_note(comparison)}")
    if FLOOR in table[0]:
        notes.append(f"{FLOOR}: {EXPLAINED}")
    notes += gains(comparison.rows)
    notes += [f"{row.name}: {_changes(comparison, row)}" for row in comparison.candidates if _changes(comparison, row)]
    notes += [f"{row.name} fails: {'; '.join(row.reasons)}" for row in comparison.failed]
    return "\n".join(
        [*lines, "", *map(wrapped, notes), "", textwrap.fill(comparison.verdict, WIDTH, break_on_hyphens=False)]
    )


def markdown(comparison: Comparison) -> str:
    """compare.md: the whole table, the split of the time, every class, and what it was measured with."""
    data, machine, tiling = comparison.data, comparison.machine, comparison.tiling
    failures = [f"- **{row.name}** fails: {'; '.join(row.reasons)}" for row in comparison.failed]
    parts = [
        f"# {comparison.model}: which precision to ship",
        f"**{_sentence(comparison.verdict)}**",
        pipes(_table(comparison, _MARKDOWN)),
        floor_note(comparison),
        "\n".join(f"- {text}" for text in gains(comparison.rows)),
        "\n".join(failures),
        "![accuracy against latency, and what each class loses](compare.png)",
        "## Where the time goes",
        f"Milliseconds a frame, p50 / p95 of {comparison.rounds} rounds, the same frame through every engine in turn; "
        f"{_frame(comparison)}.{parts_note(comparison)}",
        pipes(_table(comparison, _SPLIT)),
        f"## Classes\n\n{_class_note(comparison)}",
        pipes(class_table(comparison)),
        "## What was measured",
        "\n".join([
            f"- data: {data['path']}, {data['images']} images, {data['labelled']} labelled, {data['sha256'][:16]}",
            f"- windows {tiling['window_w']}x{tiling['window_h']}, stride {tiling['stride_w']}x{tiling['stride_h']}, "
            f"{tiling['blend']} blend",
            f"- {machine['cpu']}, {machine['cores']} cores, {machine['system']}",
            f"- {', '.join(f'{name} {version}' for name, version in comparison.versions.items())}",
            f"- model sha256 {comparison.model_sha256[:16]}, {comparison.created}",
        ]),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def class_table(comparison: Comparison) -> list[list[str]]:
    """A header, then a line a class: IoU of the reference in percent, and the points that each row gains."""
    rows = [row for row in comparison.candidates if row.measured]
    changes = [dict(class_changes(comparison, row)) for row in rows]
    names = comparison.data_classes if comparison.labelled else comparison.classes
    before = comparison.reference.class_iou if comparison.labelled else [1.0] * len(names)
    lines = [["class", f"IoU % {comparison.reference.name}", *(row.name for row in rows)]]
    for name, iou in zip(names, before or (), strict=True):
        if iou is not None and (comparison.labelled or any(name in each for each in changes)):
            lines.append([name, f"{100 * iou:.2f}", *(_signed(each.get(name)) for each in changes)])
    return lines


def cells(comparison: Comparison) -> list[list[str]]:
    """The table of the page: a header, then a line a row."""
    return _table(comparison, _MARKDOWN)


def split_cells(comparison: Comparison) -> list[list[str]]:
    """Where the time goes: a header, then a line for each row that was measured."""
    return _table(comparison, _SPLIT)


def parts_note(comparison: Comparison) -> str:
    """A sentence after another, or nothing where the parts add up to the frame."""
    if not any(row.measured and row.device.startswith("cuda") for row in comparison.rows):
        return ""
    return " On a GPU the parts are timed in rounds of their own, without a graph, and need not add up to the frame."


def floor_note(comparison: Comparison) -> str:
    """What the column of that name is; nothing where there is none."""
    return f"{FLOOR}: {EXPLAINED}." if _has_floors(comparison) else ""


def executed(row: Row) -> str:
    """``bf16 93 %, fp32 7 %``; the types by their share of the layers' time."""
    shares = sorted(row.executed.items(), key=lambda entry: -entry[1])
    if len(shares) == 1 and shares[0][1] > 0.995:
        return shares[0][0]
    return " ".join(f"{name} {100 * share:.0f}%" for name, share in shares if share >= 0.005)


def result(row: Row) -> str:
    if row.views is not None:
        return "views"
    return ("pass" if row.passed else "FAIL") if row.judged else "baseline"


def _class_note(comparison: Comparison) -> str:
    if comparison.labelled:
        return "IoU of the reference with the truth, and the points that each precision gains or loses against it."
    return "There are no labels, so this is the IoU with the reference's own masks: every difference counts as a loss."


def _frame(comparison: Comparison) -> str:
    size, count = comparison.reference.frame_size, comparison.reference.windows
    if size is None or count is None:
        return ""
    height, width = size
    return f"a frame is {width}x{height} pixels in {count} window{'s' if count > 1 else ''}"


def _changes(comparison: Comparison, row: Row) -> str:
    """The classes that change most, worst first; empty when none moves by as much as it is shown with."""
    changes = [entry for entry in class_changes(comparison, row) if abs(entry[1]) >= 0.005]
    most = sorted(sorted(changes, key=lambda entry: -abs(entry[1]))[:CHANGES_SHOWN], key=lambda entry: entry[1])
    what = "IoU by class against the reference" if comparison.labelled else "IoU with the reference's masks"
    return f"{what}: {', '.join(f'{name} {value:+.2f}' for name, value in most)}" if most else ""


def _fitting(comparison: Comparison) -> list[list[str]]:
    """The terminal's table without the columns that are too much for WIDTH; compare.md has them all."""
    columns = list(_TERMINAL)
    for title in ("", "seams", "MB", "RAM", FLOOR, "edges", "ran in"):
        columns = [column for column in columns if column[0] != title or not title]
        table = _table(comparison, columns)
        if sum(max(map(len, cells)) for cells in zip(*table, strict=True)) + 2 * (len(columns) - 1) <= WIDTH:
            break
    return table


def _table(comparison: Comparison, columns: Sequence[_Column]) -> list[list[str]]:
    shown = [column for column in columns if column[0] != FLOOR or _has_floors(comparison)]
    return [
        [title for title, _ in shown],
        *([text(comparison, row) for _, text in shown] for row in comparison.rows),
    ]


def _has_floors(comparison: Comparison) -> bool:
    return any(SHOWN in row.gpu_floor_ms for row in comparison.rows)


def _floor(row: Row) -> str:
    return f"{row.gpu_floor_ms[SHOWN]:.2f}" if SHOWN in row.gpu_floor_ms else "-"


_Column = tuple[str, Callable[[Comparison, Row], str]]


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text, the first two columns flush left, with a rule under the header."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    padded = (
        [cell.ljust(widths[k]) if k < 2 else cell.rjust(widths[k]) for k, cell in enumerate(line)] for line in table
    )
    lines = ["  ".join(line).rstrip() for line in padded]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def wrapped(note: str) -> str:
    return textwrap.fill(note, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def pipes(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown.  left: so many columns are flush left."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    rule = f"|{'|'.join(['---'] * left + ['--:'] * (len(lines[0]) - left))}|"
    return "\n".join([head, rule, *rest])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value + 0.0:+.2f}" if abs(value) >= 0.005 else "0.00"


def _mega(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}" if count < 1e8 else f"{count / 1e6:.0f}"


def _times(row: Row, part: str, gap: str = "/") -> str:
    if row.timing is None:
        return "-"
    stats = getattr(row.timing, part)
    return f"{_ms(stats.p50)}{gap}{_ms(stats.p95)}"


def _ms(value: float) -> str:
    return f"{value / 1000:.1f}s" if value >= 10_000 else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _loss(comparison: Comparison, row: Row) -> str:
    lost = drop(comparison.reference, row)
    return "-" if lost is None or row.reference else _signed(-lost)


def _agreement(row: Row, band: str) -> str:
    return "-" if row.agreement is None else percent(getattr(row.agreement, band))


_TERMINAL: list[_Column] = [
    ("precision", lambda c, r: r.name),
    ("ran in", lambda c, r: executed(r) or "-"),
    ("MB", lambda c, r: _mega(r.bytes)),
    ("mIoU", lambda c, r: percent(r.miou)),
    ("change", _loss),
    ("kept", lambda c, r: _agreement(r, "labels")),
    ("edges", lambda c, r: _agreement(r, "edges")),
    ("seams", lambda c, r: _agreement(r, "seams")),
    ("engine ms", lambda c, r: _times(r, "engine")),
    ("frame ms", lambda c, r: _times(r, "frame")),
    ("x", lambda c, r: "-" if r.speedup is None else f"{r.speedup:.1f}"),
    (FLOOR, lambda c, r: _floor(r)),
    ("RAM", lambda c, r: "-" if r.peak_bytes is None else f"{r.peak_bytes / 1e6:.0f}"),
    ("", lambda c, r: {"baseline": "base"}.get(result(r), result(r))),
]
_MARKDOWN: list[_Column] = [
    ("precision", lambda c, r: r.name),
    ("result", lambda c, r: result(r)),
    ("ran in", lambda c, r: executed(r) or "-"),
    ("engine MB", lambda c, r: _mega(r.bytes)),
    ("mIoU %", lambda c, r: percent(r.miou)),
    ("change", _loss),
    ("labels kept %", lambda c, r: _agreement(r, "labels")),
    ("at class edges %", lambda c, r: _agreement(r, "edges")),
    ("at window seams %", lambda c, r: _agreement(r, "seams")),
    ("engine ms", lambda c, r: _times(r, "engine", " / ")),
    ("frame ms", lambda c, r: _times(r, "frame", " / ")),
    ("speed-up", lambda c, r: "-" if r.speedup is None else f"{r.speedup:.2f}x"),
    (FLOOR, lambda c, r: _floor(r)),
    ("peak MB", lambda c, r: "-" if r.peak_bytes is None else f"{r.peak_bytes / 1e6:.0f}"),
]
_SPLIT: list[_Column] = [
    ("precision", lambda c, r: r.name),
    *((part, lambda c, r, part=part: _times(r, part, " / ")) for part in (*PARTS, "frame")),
    ("load ms", lambda c, r: "-" if r.load_ms is None else f"{r.load_ms:.0f}"),
]
