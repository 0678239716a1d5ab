"""`run` on videos, from the command line: what comes out is what `run` gives for the frames, at their times."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deploy
from engines.images.write import overlay
from engines.segmenter import open_segmenter
from engines.video import av_write

av = pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")

from tests.engines.video.clips import decoded, labels, pictures, times, write  # noqa: E402

Report = dict[str, Any]


def run(bundle: Path, *words: Any, code: int = 0, capsys: pytest.CaptureFixture[str]) -> Report:
    capsys.readouterr()
    assert deploy.main(["run", str(bundle), *map(str, words), "--json"]) == code
    found: Report = json.loads(capsys.readouterr().out)
    return found


def masks_of(bundle: Path, frames: list[Any], folder: Path, *words: str) -> list[Any]:
    """What `run` gives for the frames as PNGs."""
    (folder / "frames").mkdir()
    for index, pixels in enumerate(frames):
        Image.fromarray(pixels).save(folder / "frames" / f"{index}.png")
    assert deploy.main(["run", str(bundle), str(folder / "frames"), "-o", str(folder / "masks"), *words]) == 0
    return [np.asarray(Image.open(folder / "masks" / f"{index}.png")) for index in range(len(frames))]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_labels_overlay_and_confidence_of_a_clip(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = tmp_path / "drive.mkv", tmp_path / "out"
    write(clip, pictures(12, 100, 150), rate=Fraction(30000, 1001))
    result = run(tiny_bundle, clip, "-o", out, "--overlay", "--confidence", capsys=capsys)
    assert names(out) == ["drive.confidence.mkv", "drive.labels.mkv", "drive.overlay.mp4"]
    frames = [pixels for _, pixels in decoded(clip)]
    expected = masks_of(tiny_bundle, frames, tmp_path, "--confidence")
    found = labels(out / "drive.labels.mkv")
    assert len(found) == 12
    assert all(map(np.array_equal, found, expected))
    assert len({label for mask in found for label in np.unique(mask)}) > 2  # or nothing was compared
    for index, certainty in enumerate(labels(out / "drive.confidence.mkv")):
        assert np.array_equal(certainty, np.asarray(Image.open(tmp_path / "masks" / f"{index}.confidence.png")))
    with open_segmenter(tiny_bundle) as (_, manifest):
        spec = manifest.spec
    wanted = [overlay(pixels, mask, spec.palette).astype(int) for pixels, mask in zip(frames, expected, strict=True)]
    for index, (_, seen) in enumerate(decoded(out / "drive.overlay.mp4")):  # lossy, but nearest to its own frame
        away = [np.abs(seen - each).mean() for each in wanted]
        assert away[index] < 10 < min(away[:index] + away[index + 1 :])
    with av.open(str(out / "drive.labels.mkv")) as file:
        assert file.metadata["CLASS_1"] == spec.classes[1]
        assert file.metadata["COLOR_1"] == "#{:02x}{:02x}{:02x}".format(*spec.palette[1])
        assert file.streams.video[0].codec_context.name == "ffv1"
        assert file.streams.video[0].average_rate == Fraction(30000, 1001)
        # As programs that know colours alone read it (OpenCV): the number, three times.
        for frame, mask in zip(file.decode(video=0), expected, strict=True):
            assert np.array_equal(frame.to_ndarray(format="bgr24"), np.repeat(mask[:, :, None], 3, 2))
    (report,) = result["videos"]
    assert (report["frames"], report["width"], report["height"], report["live"]) == (12, 150, 100, False)
    assert sum(report["classes"].values()) == pytest.approx(1, abs=1e-4)
    assert report["encoders"][str(out / "drive.labels.mkv")] == "ffv1"
    assert set(report["median_ms"]) == {"gather", "engine", "stitch"}


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_times_are_the_videos_own(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], container: str
) -> None:
    """Of variable rate: the overlay's to the tick, the labels' to Matroska's millisecond."""
    clip, out = tmp_path / f"v.{container}", tmp_path / "out"
    moments = np.cumsum([0, *np.random.default_rng(0).integers(900, 9000, 9)]).tolist()
    write(clip, pictures(10), codec="mpeg4", times=moments, tick=Fraction(1, 60000))
    run(tiny_bundle, clip, "-o", out, "--overlay", capsys=capsys)
    exact = times(clip)
    assert len(exact) == 10
    assert len(set(np.diff(exact).round(4))) > 5
    assert times(out / "v.overlay.mp4") == pytest.approx(exact, abs=1e-9)
    assert times(out / "v.labels.mkv") == pytest.approx(exact, abs=5.01e-4)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_video_is_labelled_upright(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], turn: int
) -> None:
    """As a telephone held upright writes it: PyAV's rotation counts degrees against the clock."""
    clip, out = tmp_path / "turned.mp4", tmp_path / "out"
    write(clip, pictures(3), codec="mpeg4", turn=turn)
    run(tiny_bundle, clip, "-o", out, "--overlay", capsys=capsys)
    upright = [np.rot90(pixels, turn // 90) for _, pixels in decoded(clip)]
    expected = masks_of(tiny_bundle, upright, tmp_path)
    assert all(map(np.array_equal, labels(out / "turned.labels.mkv"), expected))
    with av.open(str(out / "turned.overlay.mp4")) as file:
        (frame, *_) = file.decode(video=0)
        assert frame.rotation == 0
        assert (frame.height, frame.width) == upright[0].shape[:2]


@pytest.mark.parametrize(
    ("codec", "kind", "size", "options"),
    [
        ("ffv1", "yuv420p", (65, 97), {}),
        ("ffv1", "yuv420p10le", (64, 96), {}),
        ("ffv1", "gray", (64, 96), {}),
        ("ffv1", "gray16le", (64, 96), {}),
        ("mpeg4", "yuv420p", (64, 96), {"flags": "+ilme+ildct"}),
        ("png", "pal8", (40, 50), {}),
        ("mjpeg", "yuvj422p", (64, 96), {}),
    ],
)
def test_every_kind_of_picture(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], codec: str, kind: str,
    size: tuple[int, int], options: dict[str, str],
) -> None:  # fmt: skip
    clip, out = tmp_path / ("clip.mov" if codec == "png" else "clip.mkv"), tmp_path / "out"
    shown = pictures(3, *size)
    if kind == "pal8":
        _palette_clip(clip, shown)
    else:
        write(clip, shown, codec=codec, kind=kind, options=options, full=kind.startswith("yuvj"))
    run(tiny_bundle, clip, "-o", out, "--overlay", capsys=capsys)
    expected = masks_of(tiny_bundle, [pixels for _, pixels in decoded(clip)], tmp_path)
    assert all(map(np.array_equal, labels(out / "clip.labels.mkv"), expected))
    (_, seen) = decoded(out / "clip.overlay.mp4")[0]
    assert seen.shape[:2] == tuple(side + side % 2 for side in size)


def test_high_dynamic_range_is_named(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """BT.2020 in 10 bits by the curve PQ: the values are taken as they are."""
    clip = tmp_path / "hdr.mkv"
    write(clip, pictures(2), kind="yuv420p10le", matrix=9, curve=16)
    (report,) = run(tiny_bundle, clip, "-o", tmp_path / "out", capsys=capsys)["videos"]
    assert report["notes"] == [f"{clip} is HDR (PQ): its values are taken as they are, and look dull"]
    expected = masks_of(tiny_bundle, [pixels for _, pixels in decoded(clip)], tmp_path)
    assert all(map(np.array_equal, labels(tmp_path / "out" / "hdr.labels.mkv"), expected))


def _palette_clip(path: Path, shown: list[Any]) -> None:
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("png", rate=25)
        stream.height, stream.width = shown[0].shape[:2]
        stream.pix_fmt = "pal8"
        for index, picture in enumerate(shown):
            image = Image.fromarray(picture).quantize(16)
            colours = np.zeros((256, 4), np.uint8)
            table = np.array(image.getpalette()).reshape(-1, 3)
            colours[: len(table), :3] = table
            colours[:, 3] = 255
            frame = av.VideoFrame.from_ndarray((np.asarray(image), colours), format="pal8")
            frame.pts = index
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def test_what_alpha_hides_is_255(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, out = tmp_path / "logo.mov", tmp_path / "out"
    shown = pictures(3, channels=4)
    for picture in shown:
        picture[:, :, 3] = 255
        picture[10:20, 30:60, 3] = 0
    write(clip, shown, codec="qtrle", kind="argb")
    run(tiny_bundle, clip, "-o", out, capsys=capsys)
    run(tiny_bundle, clip, "-o", tmp_path / "kept", "--keep-nodata", capsys=capsys)
    for found, kept in zip(labels(out / "logo.labels.mkv"), labels(tmp_path / "kept" / "logo.labels.mkv"), strict=True):
        assert (found[10:20, 30:60] == 255).all()
        assert (kept != 255).all()
        found[10:20, 30:60] = kept[10:20, 30:60]
        assert np.array_equal(found, kept)


def test_one_frame_in_so_many_and_the_first_seconds(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = tmp_path / "clip.mkv", tmp_path / "out"
    write(clip, pictures(20))
    result = run(tiny_bundle, clip, "-o", out, "--overlay", "--every", 3, "--seconds", "0.5", capsys=capsys)
    assert result["videos"][0]["frames"] == 5  # 0, 3, 6, 9, 12 of thirteen
    for name in ("clip.labels.mkv", "clip.overlay.mp4"):
        assert times(out / name) == pytest.approx([0, 0.12, 0.24, 0.36, 0.48], abs=5.01e-4)
    expected = masks_of(tiny_bundle, [pixels for _, pixels in decoded(clip)[:13:3]], tmp_path)
    assert all(map(np.array_equal, labels(out / "clip.labels.mkv"), expected))


def test_views_bands_and_scales_as_of_images(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = tmp_path / "clip.mkv", tmp_path / "out"
    write(clip, pictures(2))
    words = ["--tta", "--scales", "1,1.5", "--bands", "3,1,2", "--scale", "20..200"]
    run(tiny_bundle, clip, "-o", out, *words, capsys=capsys)
    expected = masks_of(tiny_bundle, [pixels for _, pixels in decoded(clip)], tmp_path, *words)
    assert all(map(np.array_equal, labels(out / "clip.labels.mkv"), expected))


def test_without_h264_the_overlay_is_mpeg4(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose clock has at most 65535 ticks a second."""
    monkeypatch.delitem(av_write._ENCODERS, "libx264")
    monkeypatch.delitem(av_write._ENCODERS, "libopenh264")
    clip, out = tmp_path / "clip.mp4", tmp_path / "out"
    write(clip, pictures(6), codec="libx264", times=[0, 3000, 6001, 9007, 11111, 20000], tick=Fraction(1, 90_000))
    result = run(tiny_bundle, clip, "-o", out, "--overlay", capsys=capsys)
    assert result["videos"][0]["encoders"][str(out / "clip.overlay.mp4")] == "mpeg4"
    assert times(out / "clip.overlay.mp4") == pytest.approx(times(clip), abs=1 / 60_000)
    frames = [pixels for _, pixels in decoded(clip)]
    with open_segmenter(tiny_bundle) as (segmenter, _):
        wanted = [overlay(pixels, segmenter.segment(pixels).labels, segmenter.spec.palette) for pixels in frames]
    for (_, seen), each in zip(decoded(out / "clip.overlay.mp4"), wanted, strict=True):
        assert np.abs(seen.astype(int) - each).mean() < 10


@pytest.mark.parametrize("turn", [None, 90])
def test_pixels_that_are_not_square_keep_their_shape(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], turn: int | None
) -> None:
    clip, out = tmp_path / "dv.mp4", tmp_path / "out"
    write(clip, pictures(2), codec="mpeg4", aspect=Fraction(16, 15), turn=turn)
    run(tiny_bundle, clip, "-o", out, "--overlay", capsys=capsys)
    with av.open(str(out / "dv.overlay.mp4")) as file:
        aspect = file.streams.video[0].sample_aspect_ratio
        assert aspect == (Fraction(16, 15) if turn is None else Fraction(15, 16))


def test_videos_among_images(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder, with masks and tracks of an earlier run in it; and left out where their masks are there."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(pictures(1)[0]).save(folder / "a.jpg")
    write(folder / "b.mkv", pictures(2))
    write(folder / "c.MP4", pictures(2), codec="mpeg4", format="mp4")
    write(folder / "old.labels.mkv", pictures(1))
    (folder / "notes.txt").touch()
    result = run(tiny_bundle, folder, "-o", tmp_path / "out", capsys=capsys)
    assert names(tmp_path / "out") == ["a.png", "b.labels.mkv", "c.labels.mkv"]
    assert [Path(video["input"]).name for video in result["videos"]] == ["b.mkv", "c.MP4"]
    assert result["left_out"] == {".txt": 1}
    result = run(tiny_bundle, folder, "-o", tmp_path / "out", "--skip-existing", capsys=capsys)
    assert (result["existing"], result["videos"], result["images"]) == (3, [], [])
    shards = [run(tiny_bundle, folder, "-o", tmp_path / f"{n}", "--shard", f"{n}/2", capsys=capsys) for n in (1, 2)]
    seen = [Path(each["input"]).name for shard in shards for each in (*shard["images"], *shard["videos"])]
    assert sorted(seen) == ["a.jpg", "b.mkv", "c.MP4"]


def test_without_pyav(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos in a folder are counted, one that is named is refused; both say what to install."""
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    write(tmp_path / "b.mkv", pictures(1))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert deploy.main(["run", str(tiny_bundle), str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    assert "1 .mkv; for the videos: pip install 'edgeseg[video]'" in capsys.readouterr().out
    assert deploy.main(["run", str(tiny_bundle), str(tmp_path / "b.mkv"), "-o", str(tmp_path / "out")]) == 2
    assert "b.mkv: expected PyAV for it; pip install 'edgeseg[video]'" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(av, "__version__", "16.1.0")  # whose colours are wrong
    assert deploy.main(["run", str(tiny_bundle), str(tmp_path / "b.mkv"), "-o", str(tmp_path / "out")]) == 2
    assert "b.mkv: got PyAV 16.1.0, expected 17 or later; pip install 'edgeseg[video]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--polygons", "gpkg"], "none of the inputs is a raster"),
        (["--resume"], "none of the inputs is a raster"),
        (["--every", "0"], "expected"),
        (["--seconds", "0"], "expected more than 0"),
        (["--max-pixels", "100"], "got frames of 96x64, more than 100 pixels"),
        (["--bands", "1,2,4"], "got 3 band(s), expected 4"),
    ],
)
def test_bad_words_are_one_line_and_exit_2(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    write(tmp_path / "clip.mkv", pictures(1))
    try:
        code = deploy.main(["run", str(tiny_bundle), str(tmp_path / "clip.mkv"), *words, "-o", str(tmp_path / "out")])
    except SystemExit as end:
        code = end.code
    assert code == 2
    printed = capsys.readouterr()
    assert message in printed.out + printed.err
    assert names(tmp_path / "out") == []


def test_words_for_videos_want_one(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    assert (
        deploy.main(["run", str(tiny_bundle), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--every", "2"])
        == 2
    )
    assert "--every, --seconds: none of the inputs is a video" in capsys.readouterr().err


def test_names_are_refused_where_they_meet(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "clip.mkv", pictures(1))
    write(tmp_path / "clip.labels.mkv", pictures(1))
    both = [str(tmp_path / "clip.mkv"), str(tmp_path / "clip.labels.mkv")]
    assert deploy.main(["run", str(tiny_bundle), *both, "-o", str(tmp_path)]) == 2
    assert "would overwrite the input" in capsys.readouterr().err
