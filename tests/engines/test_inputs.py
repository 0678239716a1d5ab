"""Files, folders and globs; and that nothing is written over anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import DeployError
from engines.inputs import expand, output_names


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("p/10.jpg", "p/2.JPG", "p/notes.txt", "p/deep/3.png", "q/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    return tmp_path


def _names(tree: Path, *inputs: str) -> list[str]:
    return [str(path.relative_to(tree)) for path in expand([str(tree / text) for text in inputs])]


def test_folders_files_and_globs(tree: Path) -> None:
    assert _names(tree, "p") == ["p/2.JPG", "p/10.jpg"]
    assert _names(tree, "p/**/*.png") == ["p/deep/3.png"]
    assert _names(tree, "*/2.*") == ["p/2.JPG", "q/2.png"]
    assert _names(tree, "p/10.jpg", "p") == ["p/10.jpg", "p/2.JPG"]


def test_a_file_named_like_a_glob_is_a_file(tree: Path) -> None:
    (tree / "a[1].png").write_bytes(b"x")
    assert _names(tree, "a[1].png") == ["a[1].png"]


@pytest.mark.parametrize("text", ["none.jpg", "empty", "*.gif", "none/*.jpg"])
def test_what_yields_nothing_is_named(tree: Path, text: str) -> None:
    with pytest.raises(DeployError, match="input .*" + text.replace("*", r"\*")):
        expand([str(tree / text)])


def test_masks_are_named_after_their_image(tree: Path) -> None:
    paths = expand([str(tree / "p")])
    assert list(output_names(paths, tree / "out").values()) == ["2.png", "10.png"]


def test_two_images_never_share_a_mask(tree: Path) -> None:
    with pytest.raises(DeployError, match=r"2\.JPG and .*2\.png.*two folders"):
        output_names(expand([str(tree / "*/2.*")]), tree / "out")


def test_a_mask_never_overwrites_an_input(tree: Path) -> None:
    with pytest.raises(DeployError, match="would overwrite the input"):
        output_names([tree / "q" / "2.png"], tree / "q")
