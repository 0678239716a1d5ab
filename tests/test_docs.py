"""What README, CONTRIBUTING and the guides say is so: links, pictures, commands, options, the map and the walks.

Fenced blocks of commands carry a mark on the line above, which says how they are held to their word:

    <!-- run -->          run, in order, in a folder that looks like a checkout, after those of the README
    <!-- file: NAME -->   written to NAME in that folder
    <!-- needs: WHAT -->  not run, for want of WHAT; its commands are parsed all the same
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import deploy

ROOT = Path(__file__).parent.parent
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", *GUIDES]
ROOMS = ("pipeline", "calib", "engines")
MAKEFILE = ROOT / "Makefile"
PICTURE_BYTES = 400_000
OPTION = re.compile(r"(?<![\w-])(?:--[a-z][a-z-]+|-o\b)")
SPAN = re.compile(r"`([^`\n]+)`")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=_name)


@dataclass(frozen=True)
class Block:
    """A fenced block.  mark: of the comment on the line above, or empty.  line: of its opening fence, from 1."""

    document: Path
    line: int
    mark: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{_name(self.document)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.language == "bash" else []
        split = [shlex.split(part, comments=True) for line in lines for part in re.split(r" && |; ", line)]
        return [words for words in split if words]


def _blocks(document: Path) -> list[Block]:
    blocks, lines = [], document.read_text().splitlines()
    fences = [index for index, line in enumerate(lines) if line.startswith("```")]
    for first, last in zip(fences[::2], fences[1::2], strict=True):
        mark = re.fullmatch(r"<!-- (.+) -->", lines[first - 1])
        text = "\n".join(lines[first + 1 : last]) + "\n"
        blocks.append(Block(document, first + 1, mark[1] if mark else "", lines[first][3:], text))
    return blocks


def _prose(document: Path) -> str:
    """The text outside of fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)


BLOCKS = [block for document in DOCUMENTS for block in _blocks(document)]
COMMANDS = [(block, words) for block in BLOCKS for words in block.commands()]


# Links and pictures


def _links(document: Path) -> list[str]:
    text = _prose(document)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)


def _anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_links_and_anchors_resolve(document: Path) -> None:
    for link in _links(document):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = document if not path else (document.parent / path).resolve()
        assert target.exists(), f"{_name(document)} links to {link}"
        assert target.is_relative_to(ROOT), f"{_name(document)} links out of the repository: {link}"
        assert not anchor or anchor in _anchors(target), f"{_name(document)}: {link}: {sorted(_anchors(target))}"


def test_guides_can_be_found_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in _links(README)}
    assert {*GUIDES, CONTRIBUTING} <= linked


def test_pictures_are_small() -> None:
    pictures = {
        (document.parent / link).resolve()
        for document in DOCUMENTS
        for link in _links(document)
        if link.endswith((".jpg", ".png", ".svg"))
    }
    assert ROOT / "docs" / "demo.jpg" in pictures
    for picture in pictures:
        assert 0 < picture.stat().st_size < PICTURE_BYTES, picture


def test_the_readmes_figures_are_those_of_measured() -> None:
    measured = [row.split(" | ") for row in re.findall(r"^\| (.+) \|$", (ROOT / "docs/measured.md").read_text(), re.M)]
    headline = re.findall(r"^\| (.+%.+) \|$", README.read_text(), re.M)
    assert len(headline) >= 5
    for row in headline:
        assert any(set(row.split(" | ")[1:]) <= set(cells) for cells in measured), row


def test_the_readme_fits_a_reader_with_ten_minutes() -> None:
    assert len(README.read_text().splitlines()) < 150


@every_document
def test_repository_paths_in_prose_exist(document: Path) -> None:
    tops = tuple(f"{name}/" for name in (*ROOMS, "tests", "benchmarks", "docs"))
    for span in SPAN.findall(_prose(document)):
        if span.startswith(tops):
            assert (ROOT / span).exists(), f"{_name(document)} names {span}"


# Commands


@cache
def _verbs() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in deploy._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


def _ours(words: list[str]) -> list[str] | None:
    """What `deploy.py` is given, or None where it is another command."""
    if words[:2] == ["python", "deploy.py"]:
        return words[2:]
    return words[1:] if words[0] in ("deploy.py", "edgeseg") else None


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_blocks_of_commands_are_marked(block: Block) -> None:
    if block.language in ("bash", "python"):
        assert re.fullmatch(r"run|needs: .+|file: \S+", block.mark), f"{block}: got the mark {block.mark!r}"
    else:
        assert not block.mark or block.mark.startswith("file: "), f"{block}: {block.mark!r} without a language"
        assert not re.search(r"^(python|pip|make|pytest|edgeseg|deploy\.py) [a-z-]", block.text, re.M), (
            f"{block}: commands in a block that is not bash"
        )


def test_commands_are_accepted_by_the_real_parser() -> None:
    examples = re.findall(r"^\| (?:`\S+`)? \|.*\| `(.+)` \|$", README.read_text(), re.M)
    ours = [(README, shlex.split(example)) for example in examples]
    ours += [(block.document, given) for block, words in COMMANDS if (given := _ours(words)) is not None]
    assert len(examples) >= len(_verbs())
    assert len(ours) >= 40
    for document, given in ours:
        try:
            deploy._parser().parse_args(given)
        except SystemExit as left:
            if left.code:
                pytest.fail(f"{_name(document)}: {' '.join(given)}")


def test_other_commands_name_what_exists() -> None:
    """Extras of pip, modules with their options, scripts, tests."""
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    spans = [shlex.split(span) for document in DOCUMENTS for span in SPAN.findall(_prose(document)) if " " in span]
    for words in [words for _, words in COMMANDS] + [words for words in spans if words[0] in ("python", "pip")]:
        line = " ".join(words)
        if words[0] == "pip":
            for found in re.findall(r"\.\[([\w,]+)\]", line):
                assert set(found.split(",")) <= extras, line
        elif words[:2] == ["python", "-m"]:
            module = ROOT / words[2].replace(".", "/")
            source = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
            for option in [word for word in words[3:] if word.startswith("--")]:
                assert f'"{option}"' in source.read_text(), line
        elif words[0] == "pytest" or words[0].startswith("benchmarks/") or words[0] == "python":
            for word in words:
                assert not word.startswith(("tests/", "benchmarks/")) or (ROOT / word).exists(), line


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE.read_text(), re.M))
    named = {words[1] for _, words in COMMANDS if words[0] == "make"}
    named |= {name for document in DOCUMENTS for name in re.findall(r"`make ([a-z]+)`", _prose(document))}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_demo_runs_what_the_readme_shows() -> None:
    shown = [words for block in _blocks(README)[:3] for words in block.commands() if words[0] in ("python", "pip")]
    dry = subprocess.run(["make", "-Bn", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    made = [shlex.split(line, comments=True) for line in dry.splitlines() if line.startswith(".venv/bin/python ")]
    assert len(shown) == 3
    for words in shown:
        tail = words[1:] if words[0] == "python" else words[2:]  # of `pip install`: there it has options of make's own
        assert any(line[-len(tail) :] == tail for line in made), " ".join(words)


def test_every_verb_is_in_the_readmes_table() -> None:
    assert set(re.findall(r"^\| `([a-z-]+)` \|", README.read_text(), re.M)) == set(_verbs())
    commands = (ROOT / "docs" / "commands.md").read_text()
    assert set(_verbs()) <= set(re.findall(r"^## (\S+)$", commands, re.M))


@every_document
def test_options_in_prose_exist(document: Path) -> None:
    known = {option for parser in (deploy._parser(), *_verbs().values()) for option in parser._option_string_actions}
    for span in SPAN.findall(_prose(document)):
        words = span.replace("\\|", "|").split()
        given = _ours(words) if words else None
        verb = (given or words)[0] if given or words else ""
        if span.startswith(("--", "-o")) or verb in _verbs():
            here = set(_verbs()[verb]._option_string_actions) if verb in _verbs() else known
            assert set(OPTION.findall(span)) <= here, f"{_name(document)}: {span}"


def test_every_option_is_in_the_guides() -> None:
    written = {option for document in (README, *GUIDES) for option in OPTION.findall(document.read_text())}
    for parser in (deploy._parser(), *_verbs().values()):
        for action in parser._actions:
            if action.option_strings and "--help" not in action.option_strings:
                assert set(action.option_strings) & written, f"{parser.prog} {action.option_strings[-1]} is in no guide"


def _play(blocks: list[Block], folder: Path) -> None:
    """Run, in order, what is marked so."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks:
        if block.mark.startswith("file: "):
            (folder / block.mark.removeprefix("file: ")).write_text(block.text)
        elif block.mark == "run":
            command = [sys.executable, "-"] if block.language == "python" else ["bash", "-euo", "pipefail"]
            done = subprocess.run(
                command, input=block.text, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{block}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr}"


@pytest.fixture(scope="module")
def after_the_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkout's code, where the README's commands were run."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("deploy.py", "benchmarks", *ROOMS):
        (folder / name).symlink_to(ROOT / name)
    _play(_blocks(README), folder)
    return folder


@pytest.mark.slow
def test_what_the_readme_says_comes_out(after_the_readme: Path) -> None:
    promised = [span for span in SPAN.findall(_prose(README)) if span.startswith(("masks/", "demo-bundle/"))]
    assert len(promised) >= 4
    for name in promised:
        assert (after_the_readme / name).exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("guide", [g for g in GUIDES if any(b.mark == "run" for b in _blocks(g))], ids=_name)
def test_commands_of_the_guides_run(guide: Path, after_the_readme: Path) -> None:
    _play(_blocks(guide), after_the_readme)


# CONTRIBUTING


def test_every_room_is_on_the_map() -> None:
    (tree,) = [block for block in _blocks(CONTRIBUTING) if "deploy.py  " in block.text]
    drawn: set[str] = set()
    above: list[str] = []
    for indent, name in re.findall(r"^( *)(\S+)", tree.text, re.M):
        del above[len(indent) // 2 :]
        above.append(name)
        drawn.add("".join(above))
    rooms = {f"{_name(file.parent)}/" for room in ROOMS for file in (ROOT / room).rglob("*.py")}
    assert {path for path in drawn if path.startswith(ROOMS)} == rooms
    assert all((ROOT / path).exists() for path in drawn)


def _section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", CONTRIBUTING.read_text(), re.M | re.S)
    assert found, f"CONTRIBUTING has no section {title!r}"
    return found[1]


def test_registries_are_where_contributing_says() -> None:
    rows = re.findall(r"^\|.+\|$", _section("Where something new goes"), re.M)[2:]
    assert len(rows) >= 8
    for row in rows:
        spans = SPAN.findall(row)
        texts = [(ROOT / span).read_text() for span in spans if (ROOT / span).is_file()]
        line = re.split(r"(?<!\\)\|", row)[3]
        names = [span for span in SPAN.findall(line) if span.isidentifier()]
        assert names, row
        for name in names:
            assert any(re.search(rf"^(def )?{name}\b", text, re.M) for text in texts), f"{name}: {row}"


def test_every_rule_names_the_test_that_holds_it() -> None:
    rows = re.findall(r"^\|.+\|$", _section("House rules"), re.M)[2:]
    for row in rows:
        path, *tests = SPAN.findall(row.rsplit(" | ", 1)[1])
        if path.startswith("tests/"):
            for test in tests:
                assert f"def {test}(" in (ROOT / path).read_text(), row


@cache
def _imports(path: Path) -> frozenset[Path]:
    """The files of this project that `path` imports by name, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {part if _file(part) else node.module for part in parts}
    return frozenset(file for name in names if (file := _file(name)))


def _file(module: str) -> Path | None:
    place = ROOT / module.replace(".", "/")
    ours = module.split(".")[0] in (*ROOMS, "deploy")
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if ours and f.is_file()), None)


@cache
def _reaches(path: Path) -> frozenset[Path]:
    """All files that `path` imports, and those import, and so on."""
    seen: set[Path] = set()
    new = {path}
    while new:
        new = {found for each in new for found in _imports(each)} - seen
        seen |= new
    return frozenset(seen)


def _walk(title: str) -> Iterator[tuple[Path | None, Path, str]]:
    """(file of the caller, file, function) of each step."""
    callers: list[Path] = []
    for indent, text in re.findall(r"^( *)- (.+)$", _section(title), re.M):
        steps = re.findall(r"`([\w/]+\.py)` `(\w+)`", text)
        del callers[len(indent) // 2 :]
        for path, function in steps:
            yield (callers[-1] if callers else None), ROOT / path, function
        callers.append(ROOT / steps[0][0])


@pytest.mark.parametrize("title", ["A walk: one image", "A walk: one build request"])
def test_a_walk_goes_where_it_says_and_does_not_turn_back(title: str) -> None:
    """Every function is where it is said to be, is called there by the one above, and imports nothing of it."""
    steps = list(_walk(title))
    assert len(steps) >= 15
    for caller, path, function in steps:
        assert re.search(rf"^\s*(def|class) {function}\b", path.read_text(), re.M), f"{path} has no {function}"
        if caller is not None and caller != path:
            assert re.search(rf"\b{function}[(.]", caller.read_text()), f"{caller} does not call {function}"
            assert caller not in _reaches(path), f"{path} imports {caller}, which calls its {function}"
