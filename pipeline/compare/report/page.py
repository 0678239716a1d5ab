"""compare.html: the comparison as one file that asks for nothing else, for desk and phone, in light and in dark."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from engines.images.write import jpeg_bytes
from pipeline.compare.augment import gains
from pipeline.compare.judge import BASELINES
from pipeline.compare.report.figure import class_panel, trade_off
from pipeline.compare.report.style import CSS
from pipeline.compare.report.table import cells, class_table, executed, floor_note, parts_note, result, split_cells
from pipeline.compare.rows import Comparison, Row, drop, percent
from pipeline.compare.worst import Picture
from pipeline.figures.theme import DARK, LIGHT, colour

# Nothing may be fetched or run, whatever names and paths say.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(comparison: Comparison, pictures: Mapping[str, Sequence[Picture]]) -> str:
    """The whole file.  pictures: the worst images by the row's name."""
    title = f"{comparison.model}: which precision to ship"
    sections = [
        _header(comparison),
        _section("table", "Comparison", _comparison(comparison) + _failures(comparison)),
        _section("picture", "Accuracy and latency", _figures(comparison)),
        _section("classes", "Classes", _classes(comparison)),
        _section("worst", "Where the labels differ most", _worst(comparison, pictures)),
        _section("split", "Where the time goes", _split(comparison)),
        _section("builds", "How each was built and verified", "".join(map(_build, comparison.rows))),
        _section("setup", "What was measured", _setup(comparison)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{CSS}{_colours(comparison)}</style></head>\n'
        f"<body><main>\n{chr(10).join(sections)}\n</main></body></html>\n"
    )


def _header(comparison: Comparison) -> str:
    best = next((row for row in comparison.candidates if row.name == comparison.ship), None)
    _, _, why = comparison.verdict.partition(": ")
    if best is None:
        head = '<p class="ship none">None of them passes</p>'
        figures = ""
    else:
        head = (
            f'<p class="ship">Ship <b class="{_css(best)}">{escape(best.precision)}</b> on {escape(best.backend)}</p>'
        )
        figures = "".join(
            f"<div><b>{value}</b><span>{what}</span></div>" for value, what in _key_figures(comparison, best)
        )
    return (
        f"<header><h1>{escape(comparison.model)}</h1>{head}"
        f'<div class="figures">{figures}</div><p class="why">{escape(why)}</p></header>'
    )


def _key_figures(comparison: Comparison, row: Row) -> list[tuple[str, str]]:
    assert row.timing is not None
    assert row.agreement is not None
    baseline = BASELINES.get(comparison.yardstick.backend, "the baseline")
    shown = [
        (f"{row.timing.frame.p50:.3g} ms", "a frame, median"),
        (f"{row.speedup:.1f}x", f"as fast as {baseline}"),
        (f"{percent(row.agreement.labels)} %", "of labels kept"),
    ]
    lost = drop(comparison.reference, row)
    if lost is not None and row.miou is not None:
        shown.append((f"{100 * row.miou:.2f} %", f"mIoU, {0.0 - round(lost, 2):+.2f} points"))
    return shown


def _table(lines: Sequence[Sequence[str]], rows: Sequence[Row]) -> str:
    """The first cell of each line carries its row's colour; a failed row is marked as a whole."""
    head, *body = lines
    out = [_head(head)]
    for row, line in zip(rows, body, strict=True):
        first, *rest = line
        out.append(f'<tr class="{result(row).lower()}"><th><i class="{_css(row)}"></i>{escape(first)}</th>')
        out += [f"<td{_badge(cell)}>{escape(cell)}</td>" for cell in rest]
        out.append("</tr>")
    return "".join([*out, "</tbody></table></div>"])


def _head(titles: Sequence[str]) -> str:
    columns = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>'


def _badge(cell: str) -> str:
    return f' class="badge {cell.lower()}"' if cell in ("pass", "FAIL", "baseline") else ""


def _comparison(comparison: Comparison) -> str:
    notes = [note for note in (floor_note(comparison), *gains(comparison.rows)) if note]
    return _table(cells(comparison), comparison.rows) + "".join(f"<p>{escape(note)}</p>" for note in notes)


def _failures(comparison: Comparison) -> str:
    failed = comparison.failed
    lines = (f"<li><b>{escape(row.name)}</b> fails: {escape('; '.join(row.reasons))}</li>" for row in failed)
    return f'<ul class="failures">{"".join(lines)}</ul>' if failed else ""


def _figures(comparison: Comparison) -> str:
    panels = {"accuracy against latency": trade_off, "what each class gains or loses": class_panel}
    shown = []
    for what, draw in panels.items():
        light, dark = (_data("png", draw(comparison, theme)) for theme in (LIGHT, DARK))
        source = f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        shown.append(f'<picture>{source}<img src="{light}" alt="{what}"></picture>')
    return f'<div class="panels">{"".join(shown)}</div>'


def _classes(comparison: Comparison) -> str:
    head, *body = class_table(comparison)
    if not body:
        return "<p>No row was measured.</p>"
    out = [_head(head)]
    for name, iou, *changes in body:
        out.append(f"<tr><th>{escape(name)}</th><td>{iou}</td>")
        out += [f'<td class="{_tone(change)}">{change}</td>' for change in changes]
        out.append("</tr>")
    note = "" if comparison.labelled else "<p>There are no labels: IoU with the reference's own masks.</p>"
    return note + "".join([*out, "</tbody></table></div>"])


def _tone(change: str) -> str:
    if change == "-":
        return ""
    value = float(change)
    return "bad" if value <= -0.5 else "good" if value >= 0.5 else ""


def _worst(comparison: Comparison, pictures: Mapping[str, Sequence[Picture]]) -> str:
    out = []
    for row in comparison.candidates:
        if not row.measured:
            continue
        out.append(f'<h3><i class="{_css(row)}"></i>{escape(row.name)}</h3>')
        shown = pictures.get(row.name, ())
        if not shown:
            out.append("<p>No label differs from the reference's in any image.</p>")
        out += [_strip(picture, row, comparison.reference) for picture in shown]
    return "".join(out) or "<p>No row was measured.</p>"


def _strip(picture: Picture, row: Row, reference: Row) -> str:
    share = f"{percent(picture.share)} % of labels kept"
    parts = {
        "image": picture.image,
        f"{reference.name}, the reference": picture.reference,
        row.name: picture.candidate,
        "where they differ": picture.difference,
    }
    images = "".join(
        f'<figure><img src="{_data("jpeg", jpeg_bytes(pixels))}" alt="{escape(picture.name)}: {escape(what)}">'
        f"<figcaption>{escape(what)}</figcaption></figure>"
        for what, pixels in parts.items()
    )
    return f'<div class="strip"><p><b>{escape(picture.name)}</b> {share}</p><div class="four">{images}</div></div>'


def _split(comparison: Comparison) -> str:
    reference = comparison.reference
    assert reference.frame_size is not None
    height, width = reference.frame_size
    note = (
        f"Milliseconds a frame, p50 / p95 of {comparison.rounds} rounds, the same frame through every engine in turn. "
        f"A frame is {width}x{height} pixels, {reference.windows} window(s), from decoded pixels to the label map."
        f"{parts_note(comparison)}"
    )
    return f"<p>{note}</p>{_table(split_cells(comparison), comparison.rows)}"


def _build(row: Row) -> str:
    steps = "".join(
        f"<tr><th>{escape(str(step['step']))}</th><td>{_scientific(step.get('max_abs'))}</td>"
        f"<td>{100 * step['labels']:.3f} %</td><td class='text'>{escape(str(step['reference']))}</td></tr>"
        for step in row.verification
    )
    head = _head(("step", "max |difference|", "labels equal", "to"))
    table = f"{head}{steps}</tbody></table></div>" if steps else ""
    log = "\n".join(f"{step:12}{text}" for step, text in row.log)
    ran = f", ran in {executed(row)}" if row.executed else ""
    return (
        f'<details class="build"><summary><i class="{_css(row)}"></i>{escape(row.name)} '
        f'<span class="badge {result(row).lower()}">{result(row)}</span></summary>'
        f"<p>{escape(row.sdk)} {escape(row.device)}{escape(ran)}</p>{table}<pre>{escape(log)}</pre></details>"
    )


def _setup(comparison: Comparison) -> str:
    data, machine, tiling = comparison.data, comparison.machine, comparison.tiling
    given = {key.replace("_", " "): value for key, value in comparison.limits.items() if value is not None}
    limits = ", ".join(f"{key} {value:g}" for key, value in given.items())
    facts = [
        ("data", f"{data['path']}: {data['images']} images, {data['labelled']} labelled, sha256 {data['sha256'][:16]}"),
        ("windows", f"{tiling['window_w']}x{tiling['window_h']}, stride {tiling['stride_w']}x{tiling['stride_h']}, "
                    f"{tiling['blend']} blend, {tiling['padding']} padding"),
        ("limits", limits),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, governor {machine['governor']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in comparison.versions.items())),
        ("model", f"sha256 {comparison.model_sha256}"),
        ("made", comparison.created),
    ]  # fmt: skip
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{escape(text)}</dd>' for name, text in facts)}</dl>"


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{body}</section>'


def _colours(comparison: Comparison) -> str:
    """One CSS colour a row, by its class name."""
    out = []
    for theme, wrap in ((LIGHT, "{}"), (DARK, "@media (prefers-color-scheme: dark){{{}}}")):
        rules = {
            f".{_css(row)}{{--row:{colour(theme, row.precision, not row.judged)}}}": None for row in comparison.rows
        }
        out.append(wrap.format("".join(rules)))
    return "".join(out)


def _css(row: Row) -> str:
    return f"row-{row.precision}" if row.judged else "row-reference"


def _scientific(value: object) -> str:
    return f"{value:.1e}" if isinstance(value, float) else "-"


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
