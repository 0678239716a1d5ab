"""compare.html in a real browser: everything is there, nothing is asked of the network, nothing is complained about."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.compare.report.page import page
from pipeline.compare.report.table import executed
from tests.pipeline.compare.recorded import CLASSES, comparison, pictures

SECTIONS = ["table", "picture", "classes", "worst", "split", "builds", "setup"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Runs in a copy of the page, at the end: what the browser made of it, as JSON in the DOM.
PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images];
  const box = element => { const r = element.getBoundingClientRect(); return [r.width, r.height]; };
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify({
    images: images.map(image => [image.naturalWidth, image.naturalHeight, ...box(image)]),
    sections: [...document.querySelectorAll("section")].map(s => [s.id, ...box(s)]),
    rows: [...document.querySelectorAll("#table tbody tr")].map(r => [...r.children].map(c => c.textContent)),
    classes: [...document.querySelectorAll("#classes tbody th")].map(c => c.textContent),
    steps: [...document.querySelectorAll("#builds details")].map(d => d.textContent),
    paper: getComputedStyle(document.querySelector("section")).backgroundColor,
    overflow: document.documentElement.scrollWidth - innerWidth,
    requests: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
  });
  document.body.append(out);
})</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    return found


def _browse(chromium: str, file: Path, folder: Path, *extra: str) -> tuple[str, str]:
    """The DOM once loaded, and what the browser logged."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={folder}/profile",
        "--enable-logging=stderr", "--virtual-time-budget=4000", *extra, "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def _probe(chromium: str, folder: Path, text: str, *extra: str) -> dict[str, Any]:
    """What PROBE found.  Its copy of the page must let scripts run, which the page itself forbids."""
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    assert policy is not None
    file = folder / "probe.html"
    file.write_text(text.replace(policy[0], "").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    dom, _ = _browse(chromium, file, folder, *extra)
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    assert found is not None, dom[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.parametrize("labelled", [True, False])
def test_every_section_row_and_picture_is_rendered(chromium: str, tmp_path: Path, labelled: bool) -> None:
    c = comparison(labelled)
    seen = _probe(chromium, tmp_path, page(c, pictures()), "--window-size=1280,900")
    assert [name for name, *_ in seen["sections"]] == SECTIONS
    assert all(width > 600 and height > 60 for _, width, height in seen["sections"])
    assert [cells[0] for cells in seen["rows"]] == [row.name for row in c.rows]
    assert [cells[1] for cells in seen["rows"]] == ["baseline", "pass", "pass", "FAIL", "pass", "FAIL"]
    assert [cells[2] for cells in seen["rows"]] == [executed(row) or "-" for row in c.rows]
    assert seen["classes"] == list(CLASSES)
    # two panels, and four pictures for each of the three worst images
    assert len(seen["images"]) == 2 + 4 * 3
    assert all(min(size) > 0 for size in seen["images"])
    assert len(seen["steps"]) == len(c.rows)
    assert "max |diff| 2.5e-05" in seen["steps"][1]
    assert seen["requests"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_by_day_and_by_night(chromium: str, tmp_path: Path, scheme: str) -> None:
    # A headless window is at least 500 wide, whatever is asked: the page is looked at in a frame of a phone's width.
    inner = tmp_path / "inner"
    inner.mkdir()
    dark = "--blink-settings=preferredColorScheme=" + {"dark": "0", "light": "1"}[scheme]
    text = page(comparison(), pictures()).replace("<main>", '<main style="width:390px">')
    seen = _probe(chromium, inner, text, dark, "--window-size=500,900")
    assert seen["overflow"] <= 0
    assert {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme] == seen["paper"]
    assert all(width <= 390 for _, width, _ in seen["sections"])


def test_the_browser_has_nothing_to_complain_about(chromium: str, tmp_path: Path) -> None:
    """The page as it is written, its policy in force: no console message, no refused or failed request."""
    file = tmp_path / "compare.html"
    file.write_text(page(comparison(), pictures()), encoding="utf-8")
    dom, log = _browse(chromium, file, tmp_path)
    assert "auto" in dom
    assert "CONSOLE" not in log, log
    assert "ERR_" not in log, log
    broken = file.read_text().replace("</main>", '<img src="https://example.invalid/x.png"></main>')
    file.write_text(broken, encoding="utf-8")
    assert "CONSOLE" in _browse(chromium, file, tmp_path)[1]  # so the check above can fail, and the policy holds


def test_names_and_paths_cannot_write_markup() -> None:
    c = comparison()
    evil = "<script>alert(1)</script>"
    c = replace(c, model=evil, data={**c.data, "path": evil}, data_classes=(evil, *c.data_classes[1:]))
    c = replace(c, rows=(*c.rows[:-1], replace(c.rows[-1], reasons=(evil,), log=(("x", evil),))))
    assert evil not in page(c, pictures())


def test_it_says_so_when_none_passes() -> None:
    c = comparison()
    none = replace(c, ship=None, verdict="ship none of them: fp32: too slow")
    assert "None of them passes" in page(none, {})
    assert "No label differs" in page(none, {})
