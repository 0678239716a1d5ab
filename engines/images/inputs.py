"""The INPUT... of the command line -> image files, and the names of what is written for each."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.errors import DeployError, without_secrets
from engines.files import natural
from engines.images import rasters
from engines.images import videos as moving
from engines.images.read import SUFFIXES

# What `run` writes for NAME.ext, with all its options.
OUTPUT_SUFFIXES = (".png", ".overlay.jpg", ".confidence.png")
_STDIN = "/dev/stdin"


@dataclass(frozen=True)
class Input:
    """An image file, and the folder below that of the output where what is written for it goes.

    folder: empty, but for an image found below an input folder: then where it lies in that folder.
    stream: where a video comes from, or a raster, that is no file; its path is then no more than a name.
    """

    path: Path
    folder: Path = Path()
    stream: str = ""

    @property
    def source(self) -> str:
        """What opens it."""
        return self.stream or str(self.path)

    @property
    def is_video(self) -> bool:
        """Or a camera, or a stream."""
        return not rasters.is_name(self.stream) if self.stream else moving.is_video(self.path)

    @property
    def shown(self) -> str:
        """What reports call it."""
        return without_secrets(self.source)


def expand(
    inputs: Sequence[str], exclude: Path | None = None, *, recursive: bool = False, videos: bool = False
) -> list[Input]:
    """Files as they are, folders as the images in them, globs (``**`` too) as the images that they match.

    In the order given, within a folder or glob in natural order (2 before 10), each file once.  Hidden files are left
    out unless named.  Folders within folders are searched only if `recursive`; then, and in globs, whatever lies in
    the folder `exclude` (that of the output) is left out, so that masks are not segmented in their turn.
    videos: take streams, cameras, pipes and standard input (``-``), too, what GDAL knows by a name and folders that are
    a Zarr; in folders and globs the videos and rasters for which PyAV and rasterio are installed, but none that `run`
    wrote.
    Raises DeployError when one of the inputs yields nothing or cannot be read.
    """
    found: dict[Path, Input] = {}
    kinds = _kinds(videos)
    for text in map(_named, inputs) if videos else inputs:
        if videos and (rasters.is_name(text) or moving.is_stream(text) or moving.is_pipe_or_camera(Path(text))):
            _add_stream(text, found)
            continue
        try:
            matches, wanted = _matches(text, exclude, recursive, kinds)
            for match in sorted(matches, key=natural):
                within = Path(text).is_dir() and match != Path(text)
                folder = match.parent.relative_to(text) if within else Path()
                found.setdefault(_entry(match), Input(match, folder))
        except OSError as error:
            raise DeployError(f"input {text}: cannot be read: {error.strerror}") from error
        if not matches:
            raise DeployError(f"input {text}: got nothing, expected {wanted}")
    return list(found.values())


def _named(text: str) -> str:
    """``-`` is standard input, as elsewhere; a file of that name is ``./-``.  Raises DeployError where none is."""
    if text not in ("-", _STDIN):
        return text
    behind = Path(_STDIN).resolve()
    if behind.is_char_device() and not behind.name.startswith("video"):
        raise DeployError(
            f"input {text}: standard input is {behind}, expected a video; pipe one into it "
            "(ffmpeg … -f nut - | …), or < FILE"
        )
    return _STDIN


def _add_stream(text: str, found: dict[Path, Input]) -> None:
    name = rasters.file_name if rasters.is_name(text) else moving.stream_name if moving.is_stream(text) else str
    path = Path(name(text))
    other = found.setdefault(path, Input(path, stream=text))
    if other.stream != text:
        named = ", or name the first element of each pipeline (name=left)" if moving.is_pipeline(text) else ""
        raise DeployError(
            f"inputs {other.stream} and {text}: both would be written to {path}; run them into two folders{named}"
        )


def left_out(
    inputs: Sequence[str], exclude: Path | None = None, *, recursive: bool = False, videos: bool = False
) -> dict[str, int]:  # fmt: skip
    """How many files of the input folders `expand` takes for no images, by ending, the most first; hidden ones not."""
    found: Counter[str] = Counter()
    kinds = _kinds(videos)
    folders = (Path(text) for text in dict.fromkeys(inputs) if text and Path(text).is_dir())
    for folder in (folder for folder in folders if not rasters.is_zarr(folder)):
        for file in _walk(folder, exclude) if recursive else folder.iterdir():
            if file.is_file() and not file.name.startswith(".") and file.suffix.lower() not in kinds:
                found[file.suffix.lower()] += 1
    return dict(found.most_common())


def _kinds(videos: bool) -> frozenset[str]:
    more = moving.SUFFIXES if videos and moving.readable() else frozenset[str]()
    return SUFFIXES | more | (rasters.SUFFIXES if videos and rasters.readable() else frozenset())


def _matches(text: str, exclude: Path | None, recursive: bool, kinds: frozenset[str]) -> tuple[list[Path], str]:
    """What `text` stands for, and what to say was expected if that is nothing."""
    path = Path(text)
    if text and kinds >= rasters.SUFFIXES and rasters.is_zarr(path):
        return [path], ""
    if text and path.is_dir():
        files = _walk(path, exclude) if recursive else path.iterdir()
        hint = "" if recursive else ", or --recursive for those in folders within it"
        return [file for file in files if _is_one(file, kinds)], f"images ({' '.join(sorted(SUFFIXES))}) in it{hint}"
    if path.is_file():
        return [path], ""
    if path.exists() and text:
        raise DeployError(f"input {text}: neither a file nor a folder, expected an image")
    if "://" in text:
        raise DeployError(
            f"input {text}: is a URL, expected a path; mount it (rclone, s3fs, gcsfuse), or fetch it first"
        )
    if not glob.has_magic(text):
        several = "; a sequence is given as its folder or a glob" if "%" in text else ""
        raise DeployError(f"input {text or repr(text)}: no such file or folder{several}")
    outside = (Path(name) for name in glob.iglob(text, recursive=True) if not _inside(Path(name), exclude))
    return [file for file in outside if _is_one(file, kinds)], "images that match, outside of the output's folder"


def output_names(images: Sequence[Input], folder: Path) -> dict[Path, str]:
    """Below `folder`, the mask of ``NAME.ext`` is ``NAME.png``; what lies deeper in an input folder stays as deep.

    Of files that differ in their endings alone it is ``NAME.ext.png``.  Of a video it is the name that its files have
    in common, with that ending.

    Raises DeployError when two inputs would write the same file, or one would overwrite an input: by its mask, or by
    the overlay or confidence that go with it.  Case is ignored, as some file systems do.
    """
    inputs = {_entry(image.path): image.path for image in images}
    kinds: dict[str, set[str]] = {}
    for image in images:
        kinds.setdefault(str(image.folder / image.path.stem).lower(), set()).add(image.path.suffix.lower())
    owners: dict[str, Path] = {}
    names: dict[Path, str] = {}
    for image in images:
        path = image.path
        several = len(kinds[str(image.folder / path.stem).lower()]) > 1
        stem = path.name if several else path.stem
        for suffix in moving.OUTPUT_SUFFIXES if image.is_video else OUTPUT_SUFFIXES:
            name = str(image.folder / (stem + suffix))
            other = owners.setdefault(name.lower(), path)
            if other != path:
                raise DeployError(
                    f"inputs {other} and {path}: both would be written to {name}; run them into two folders, "
                    "or give the folder that holds both with --recursive"
                )
            target = folder / name
            if _entry(target) in inputs:
                raise DeployError(
                    f"output {target}: would overwrite the input {inputs[_entry(target)]}; choose another -o"
                )
        names[path] = str(image.folder / f"{stem}.png")
    return names


def _walk(folder: Path, exclude: Path | None) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".") and not _inside(Path(root, name), exclude)]
        whole = [name for name in folders if rasters.is_zarr(Path(root, name))]
        folders[:] = [name for name in folders if name not in whole]
        yield from (Path(root, name) for name in [*files, *whole])


def _is_one(path: Path, kinds: frozenset[str]) -> bool:
    """Whether a file found in a folder is an input, by its name: of those kinds, and nothing that was written."""
    written = path.suffix.lower() in moving.SUFFIXES and path.name.lower().endswith(moving.OUTPUT_SUFFIXES)
    if path.suffix.lower() not in kinds or written or path.name.startswith("."):
        return False
    return path.is_file() or rasters.is_zarr(path)


def _inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _entry(path: Path) -> Path:
    """The directory entry itself, however it is spelled: symbolic links are followed in the folder, not in the name."""
    return path.parent.resolve() / path.name
