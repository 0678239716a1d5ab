"""A folder of images with several under way at once, and what happens when the device dies in the middle of it."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deploy
from engines.errors import DeployError, GpuLostError
from engines.folder_run import RunOptions, RunPlan, run_images
from engines.images.inputs import expand
from engines.images.read import read_image, read_labels
from engines.report.rows import RunReport
from engines.segmenter import Segmenter, open_segmenter
from engines.stream.budget import PixelBudget
from engines.tiling.host import HostDevice, HostFrame


class _LateDevice(HostDevice):
    """Computes a frame when its mask is asked for, as a GPU would, and takes two at once.  Dies with frame `dies`."""

    in_flight = 2
    under_way = most = started = 0
    dies = -1

    def whole_frame(self, height: int, width: int, confidence: bool) -> Any:
        return _LateFrame(self, height, width, confidence)


class _LateFrame(HostFrame):
    _owner: _LateDevice

    def __init__(self, device: _LateDevice, *args: Any) -> None:
        super().__init__(device, *args)
        self._owner = device
        self._number = device.started
        device.started += 1

    def play(self) -> None:
        self._owner.under_way += 1
        self._owner.most = max(self._owner.most, self._owner.under_way)

    def mask(self) -> Any:
        self._owner.under_way -= 1
        if 0 <= self._owner.dies <= self._number:
            raise GpuLostError("gpu: an illegal memory access was encountered; run the rest again")
        super().play()
        return super().mask()


def _late(segmenter: Segmenter, dies: int = -1) -> Segmenter:
    device = _LateDevice(segmenter.session, segmenter.spec, segmenter.tiling)
    device.dies = dies
    return Segmenter(device)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate([(40, 60), (90, 70), (64, 96), (30, 200), (64, 96)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


def test_two_images_under_way_give_the_masks_of_one_at_a_time(
    tiny_bundle: Path, photographs: Path, tmp_path: Path
) -> None:
    (photographs / "2b.png").write_bytes(b"not an image")
    with open_segmenter(tiny_bundle) as (segmenter, _):
        late = _late(segmenter)
        reports = [
            run_images(each, expand([str(photographs)], out), out, RunOptions(overlay=True, confidence=True))
            for each, out in ((segmenter, tmp_path / "one"), (late, tmp_path / "two"))
        ]
    written = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(written) == 15
    for name in written:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert late.device.most == 2  # type: ignore[attr-defined]
    assert [Path(image.input).name for image in reports[1].images] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert [image.windows for image in reports[0].images] == [image.windows for image in reports[1].images]
    assert all(image.engine_ms > 0 for image in reports[1].images)
    assert [Path(path).name for path in reports[1].failed] == ["2b.png"]
    assert reports[1].lost is None


def test_a_lost_gpu_ends_the_folder_and_keeps_what_was_written(
    tiny_bundle: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import engines.segmenter as room

    original = Segmenter.on_host
    monkeypatch.setattr(room.Segmenter, "on_host", lambda *args, **kwargs: _late(original(*args, **kwargs), dies=2))
    out = tmp_path / "masks"
    code = deploy.main(["run", str(tiny_bundle), str(photographs), "-o", str(out)])
    assert code == 1
    written = {path.name for path in out.iterdir()}
    assert len(written) == 2
    for path in out.iterdir():
        Image.open(path).verify()
    text = capsys.readouterr()
    assert text.err.strip().splitlines() == ["error: gpu: an illegal memory access was encountered; run the rest again"]
    skipped = [line.split(":")[0] for line in text.out.splitlines() if line.startswith("skipped")]
    rest = sorted({f"{index}.png" for index in range(5)} - written)
    assert skipped == [f"skipped {photographs}/{name}" for name in rest]


def test_masks_are_those_of_one_image_at_a_time(tiny_bundle: Path, photographs: Path, tmp_path: Path) -> None:
    for index in range(5, 25):
        shutil.copy(photographs / f"{index % 5}.png", photographs / f"{index}.png")
    out = tmp_path / "out"
    with open_segmenter(tiny_bundle) as (segmenter, _):
        right = [segmenter.segment(read_image(photographs / f"{index}.png")).labels for index in range(5)]
        report = run_images(segmenter, expand([str(photographs)], out), out, RunOptions(), PixelBudget(1))
        masks = [mask.labels for mask in segmenter.stream(photographs / f"{index}.png" for index in range(25))]
    assert [Path(image.input).stem for image in report.images] == [str(index) for index in range(25)]
    assert f"25 image(s), {sum(image.windows for image in report.images)} window(s); " in str(report)
    assert report.seconds >= max(image.engine_ms for image in report.images) / 1e3
    for index, image in enumerate(report.images):
        assert np.array_equal(read_labels(out / f"{index}.png"), right[index % 5])
        assert np.array_equal(masks[index], right[index % 5])
        shares = {name: (right[index % 5] == at).mean() for at, name in enumerate(segmenter.spec.classes)}
        assert image.classes == pytest.approx({name: share for name, share in shares.items() if share}, abs=1e-6)


def test_an_interruption_leaves_no_thread_and_no_half_file(
    tiny_bundle: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _LateFrame.mask

    def interrupted(self: _LateFrame) -> Any:
        if self._number == 3:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(_LateFrame, "mask", interrupted)
    out = tmp_path / "out"
    with open_segmenter(tiny_bundle) as (segmenter, _), pytest.raises(KeyboardInterrupt):
        run_images(_late(segmenter), expand([str(photographs)], out), out, RunOptions(overlay=True))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgeseg")]
    for path in out.iterdir():
        Image.open(path).load()
        assert not path.name.startswith(".")


def test_what_cannot_be_written_is_reported_and_the_rest_goes_on(
    tiny_bundle: Path, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "1.png").mkdir(parents=True)
    with open_segmenter(tiny_bundle) as (segmenter, _):
        report = run_images(segmenter, expand([str(photographs)], out), out, RunOptions())
    assert [Path(path).name for path in report.failed] == ["1.png"]
    assert "cannot be written" in next(iter(report.failed.values()))
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == ["0.png", "2.png", "3.png", "4.png"]


def test_what_is_left_out_when_its_mask_is_there_has_all_its_files(
    tiny_bundle: Path, photographs: Path, tmp_path: Path
) -> None:
    """The mask comes last: where an overlay could not be written, --skip-existing does the image again."""
    image, out = photographs / "0.png", tmp_path / "out"
    (out / "0.overlay.jpg").mkdir(parents=True)
    words = ["run", str(tiny_bundle), str(image), "-o", str(out), "--overlay", "--skip-existing"]
    assert deploy.main(words) == 2
    (out / "0.overlay.jpg").rmdir()
    assert deploy.main(words) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0.overlay.jpg", "0.png"]


def test_a_frame_that_fails_does_not_stop_the_others(
    tiny_bundle: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _LateFrame.mask

    def nan(self: _LateFrame) -> Any:
        mask = original(self)
        if self._number == 1:
            raise DeployError("stitch: the engine's logits are NaN")
        return mask

    monkeypatch.setattr(_LateFrame, "mask", nan)
    out = tmp_path / "out"
    with open_segmenter(tiny_bundle) as (segmenter, _):
        report = run_images(_late(segmenter), expand([str(photographs)], out), out, RunOptions())
    failed = [Path(path).name for path in report.failed]
    assert len(failed) == 1  # whichever came second
    assert sorted([*(path.name for path in out.iterdir()), *failed]) == [f"{index}.png" for index in range(5)]


def test_an_image_that_cannot_be_read_comes_after_the_masks_before_it(tiny_bundle: Path) -> None:
    def read() -> Iterator[np.ndarray]:
        yield np.zeros((40, 60, 3), np.uint8)
        raise DeployError("image 2.png: cannot be read")

    with open_segmenter(tiny_bundle) as (segmenter, _):
        masks = _late(segmenter).stream(read())
        assert next(masks).labels.shape == (40, 60)
        with pytest.raises(DeployError, match=r"2\.png"):
            next(masks)


def test_an_image_that_cannot_start_comes_after_the_masks_before_it(tiny_bundle: Path) -> None:
    images = [np.zeros((40, 60, 3), np.uint8), np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96, 3), np.float32)]
    with open_segmenter(tiny_bundle) as (segmenter, _):
        masks = _late(segmenter).stream(images)  # type: ignore[arg-type]
        assert [next(masks).labels.shape for _ in range(2)] == [(40, 60), (64, 96)]
        with pytest.raises(DeployError, match=r"expected.*uint8"):
            next(masks)


def test_the_report_of_shards_is_that_of_the_whole(tiny_bundle: Path, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (photographs / "2b.png").write_bytes(b"not an image")
    inputs = expand([str(photographs)], out)
    with open_segmenter(tiny_bundle) as (segmenter, _):
        parts = [run_images(segmenter, inputs, out, RunOptions(shard=(index, 2))) for index in (1, 2)]
    assert all(part.images for part in parts)
    whole = RunReport.of_shards([part.to_json() for part in parts], [each.path for each in inputs])
    assert [Path(image.input).name for image in whole.images] == [f"{index}.png" for index in range(5)]
    assert [Path(path).name for path in whole.failed] == ["2b.png"]
    assert whole.seconds == max(part.seconds for part in parts) > 0
    assert "5 image(s)" in str(whole)


def test_a_file_stays_in_its_shard_whatever_comes_beside_it(tmp_path: Path) -> None:
    """Shards of one folder look at it at different times; a mask's name depends on what else is there."""

    def shards() -> dict[str, int]:
        plans = [RunPlan.of(expand([str(tmp_path)]), tmp_path / "out", RunOptions(shard=(at, 3))) for at in (1, 2, 3)]
        return {path.name: at for at, plan in enumerate(plans) for path in plan.pictures}

    for index in range(12):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.jpg")
    before = shards()
    for index in range(0, 12, 2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    after = shards()
    assert len(set(before.values())) == 3
    assert before.items() <= after.items()
    assert len(after) == 18


def test_a_name_cannot_break_a_message_into_lines_or_command_a_terminal(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, name = tmp_path / "in", tmp_path / "out", "two\nlines\x1b[31m\u202egnp.png"
    folder.mkdir()
    (folder / name).write_bytes(b"no image")
    Image.new("RGB", (20, 20)).save(folder / f"good {name}")
    assert deploy.main(["run", str(tiny_bundle), str(folder), "-o", str(out)]) == 2
    said = capsys.readouterr()
    assert (len(said.out.splitlines()), said.err) == (2, "")
    assert rf"skipped {folder}/two\nlines\x1b[31m\u202egnp.png: image " in said.out
    assert [path.name for path in out.iterdir()] == [f"good {name}"]
    assert deploy.main(["run", str(tiny_bundle), str(tmp_path / "no\nsuch.png"), "-o", str(out)]) == 2
    assert capsys.readouterr().err == f"error: input {tmp_path}/no\\nsuch.png: no such file or folder\n"


def test_a_disk_that_takes_no_more_costs_the_image_that_did_not_fit(tiny_bundle: Path, tmp_path: Path) -> None:
    """As for a full disk, writing fails in the middle of a file: here at the limit of a file's size."""
    rng, folder, out = np.random.default_rng(0), tmp_path / "photographs", tmp_path / "out"
    folder.mkdir()
    for index in range(6):
        size = (700, 900) if index == 2 else (16, 16)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{index}.png")
    done = subprocess.run(
        [sys.executable, "deploy.py", "run", tiny_bundle, folder, "-o", out], cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("skipped")]
    assert line == f"skipped {folder}/2.png: output {out}/2.png: cannot be written: File too large"
    assert sorted(path.name for path in out.iterdir()) == [f"{index}.png" for index in (0, 1, 3, 4, 5)]
