"""Files, folders and globs; and that nothing is written over anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.errors import DeployError
from engines.images.inputs import Input, expand, left_out, output_names


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("p/10.jpg", "p/2.JPG", "p/notes.txt", "p/deep/3.png", "q/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    return tmp_path


def _names(tree: Path, *inputs: str) -> list[str]:
    return [str(image.path.relative_to(tree)) for image in expand([str(tree / text) for text in inputs])]


def test_folders_files_and_globs(tree: Path) -> None:
    assert _names(tree, "p") == ["p/2.JPG", "p/10.jpg"]
    assert _names(tree, "p/**/*.png") == ["p/deep/3.png"]
    assert _names(tree, "*/2.*") == ["p/2.JPG", "q/2.png"]
    assert _names(tree, "p/10.jpg", "p") == ["p/10.jpg", "p/2.JPG"]


def test_a_file_named_like_a_glob_is_a_file(tree: Path) -> None:
    (tree / "a[1].png").write_bytes(b"x")
    assert _names(tree, "a[1].png") == ["a[1].png"]


def test_folders_within_folders_only_if_asked(tree: Path) -> None:
    found = expand([str(tree)], recursive=True)
    assert [str(image.path.relative_to(tree)) for image in found] == ["p/2.JPG", "p/10.jpg", "p/deep/3.png", "q/2.png"]
    with pytest.raises(DeployError, match="got nothing"):
        expand([str(tree)])


@pytest.mark.parametrize("text", ["", "**/*"])
def test_earlier_masks_are_not_inputs(tree: Path, text: str) -> None:
    found = expand([str(tree / text)], tree / "p" / ".." / "q", recursive=True)
    assert [image.path.name for image in found] == ["2.JPG", "10.jpg", "3.png"]
    assert expand([str(tree / "q")], tree / "q", recursive=True) == [Input(tree / "q" / "2.png")]  # asked for by name


def test_one_file_spelled_three_ways_is_one_input(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert expand(["q/2.png", str(tree / "q" / "2.png"), "p/../q/2.png"]) == [Input(Path("q/2.png"))]


@pytest.mark.parametrize("name", ["1\u00b22.jpg", "m\u00b2.jpg", "\u0663.jpg", "10.9.8.jpg", "a b\nc.jpg"])
def test_any_name_is_sorted(tree: Path, name: str) -> None:
    (tree / "p" / name).write_bytes(b"x")
    assert Input(tree / "p" / name) in expand([str(tree / "p")])


def test_hidden_files_only_by_name(tree: Path) -> None:
    (tree / "q" / "._2.png").write_bytes(b"x")  # what macOS leaves on other file systems
    assert _names(tree, "q") == ["q/2.png"]
    assert _names(tree, "q/._2.png") == ["q/._2.png"]


@pytest.mark.parametrize("text", ["", "a" * 300, "/dev/null"])
def test_what_is_no_input_is_named(text: str) -> None:
    with pytest.raises(DeployError, match=rf"^input {text or repr('')}"):
        expand([text])


def test_an_unreadable_folder_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    monkeypatch.setattr(os, "listdir", denied)
    for recursive in (False, True):
        with pytest.raises(DeployError, match="cannot be read: Permission denied"):
            expand([str(tree / "p")], recursive=recursive)


@pytest.mark.parametrize("text", ["none.jpg", "empty", "*.gif", "none/*.jpg"])
def test_what_yields_nothing_is_named(tree: Path, text: str) -> None:
    with pytest.raises(DeployError, match="input .*" + text.replace("*", r"\*")):
        expand([str(tree / text)])


def test_masks_are_named_after_their_image(tree: Path) -> None:
    images = expand([str(tree / "p")])
    assert list(output_names(images, tree / "out").values()) == ["2.png", "10.png"]


def test_folders_within_folders_are_mirrored(tree: Path) -> None:
    found = expand([str(tree), str(tree / "p" / "deep")], recursive=True)
    names = output_names(found, tree / "out")  # p/2.JPG and q/2.png would share a mask otherwise
    assert list(names.values()) == ["p/2.png", "p/10.png", "p/deep/3.png", "q/2.png"]


def test_two_images_never_share_a_mask(tree: Path) -> None:
    (tree / "q" / "2.JPG").write_bytes(b"x")
    with pytest.raises(DeployError, match=r"2\.JPG and .*2\.JPG.*two folders"):
        output_names(expand([str(tree / "*/2.JPG")]), tree / "out")


def test_images_that_differ_in_their_endings_alone_keep_them(tree: Path) -> None:
    names = output_names(_inputs(tree, "x.jpg", "x.TIF", "y.jpg"), tree / "out")
    assert list(names.values()) == ["x.jpg.png", "x.TIF.png", "y.png"]
    found = expand([str(tree / "*/2.*")])
    assert sorted(output_names(found, tree / "out").values()) == ["2.JPG.png", "2.png.png"]


@pytest.mark.parametrize("recursive", [False, True])
def test_what_is_left_out_is_counted_by_ending(tree: Path, recursive: bool) -> None:
    for name in ("a.txt", "b.TXT", "c.json", "README", ".hidden.txt", "deep/d.nef", "a.png", "out/m.txt"):
        path = tree / "mixed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = left_out([str(tree / "mixed"), str(tree / "q" / "2.png")], tree / "mixed" / "out", recursive=recursive)
    assert found == {".txt": 2, ".json": 1, "": 1, **({".nef": 1} if recursive else {})}


def test_a_mask_never_overwrites_an_input(tree: Path) -> None:
    (tree / "link").symlink_to(tree / "q")
    for folder in ("q", "p/../q", "link"):
        with pytest.raises(DeployError, match="would overwrite the input"):
            output_names([Input(tree / "q" / "2.png")], tree / folder)


def _inputs(tree: Path, *names: str) -> list[Input]:
    return [Input(tree / name) for name in names]


def test_overlays_and_confidences_overwrite_nothing_either(tree: Path) -> None:
    with pytest.raises(DeployError, match=r"both would be written to a\.confidence\.png"):
        output_names(_inputs(tree, "a.jpg", "a.confidence.jpg"), tree / "out")
    with pytest.raises(DeployError, match="would overwrite the input"):
        output_names(_inputs(tree, "a.jpg", "a.overlay.jpg"), tree)
    assert output_names(_inputs(tree, "a.b.jpg", "a.c.jpg"), tree) == {
        tree / "a.b.jpg": "a.b.png",
        tree / "a.c.jpg": "a.c.png",
    }


def test_a_url_is_no_path() -> None:
    with pytest.raises(DeployError, match=r"input s3://bucket/a.png: is a URL, expected a path; mount it"):
        expand(["s3://bucket/a.png"])
