"""Several views of an image on a GPU: masks bit by bit those of the host.

Run by test_cuda.py, with the fake driver.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engines.errors import DeployError, NotFiniteError
from engines.gpu.context import GpuMemoryError
from engines.tiling.placement import Tiling
from engines.tiling.sizes import Resize
from engines.views.views import SCALES, ImageViews
from tests.engines.gpu.fake_cuda.counts import during
from tests.engines.gpu.fake_cuda.support import Engine, configure, image, on_host, opened, same

TILING = Tiling(64, 96, 48, 64)
TWELVE = ImageViews(scales=SCALES, flip=True)
FEW = ImageViews(scales=(1.0, 1.5), flip=True)


def _equal(engine: Engine, tiling: Tiling, views: ImageViews, *sizes: tuple[int, int], confidence: bool = True) -> None:
    """Whole and in bands, several images with one device."""
    host = on_host(engine, tiling).on_views(views, 1)
    bands = engine.input.shape[1]
    with opened(engine, tiling) as (plain, _, _):
        segmenter = plain.on_views(views)
        for seed, size in enumerate(sizes):
            picture = image(*size, seed, bands)
            right = host.segment(picture, confidence)
            assert same(segmenter.segment(picture, confidence), right)
            parts = list(segmenter.bands(picture, confidence))
            assert [part.row0 for part in parts] == [0, *(part.row1 for part in parts[:-1])]
            assert np.array_equal(np.concatenate([part.labels for part in parts]), right.labels)


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize(("batch", "merge"), [(1, "mean"), (3, "max"), (8, "mean")])
def test_masks_equal_the_host(schedule: int, integrated: int, batch: int, merge: str) -> None:
    configure(lazy=schedule, integrated=integrated)
    views = replace(TWELVE, merge=merge)
    _equal(Engine(TILING, batch), TILING, views, (150, 133), (150, 133), (40, 50), (1, 1), (201, 97))


@pytest.mark.parametrize("blend", ["uniform", "gaussian"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_way_to_tile_equals_the_host(schedule: int, blend: str, dtype: str) -> None:
    configure(lazy=schedule)
    odd, inner = Tiling(50, 70, 50, 31, blend, "edge"), Tiling(64, 80, 33, 40, blend, "reflect", margin=(9, 12, 7, 8))
    for tiling, low in ((replace(TILING, blend=blend), None), (odd, (7, 9)), (inner, (48, 60))):
        _equal(Engine(tiling, 2, low, dtype), tiling, FEW, (131, 177), (33, 90))


@pytest.mark.parametrize("bands", [1, 4])
@pytest.mark.parametrize("filter_", ["opencv-bilinear", "pillow-bilinear"])
@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
def test_every_filter_and_number_of_bands(schedule: int, integrated: int, filter_: str, bands: int) -> None:
    configure(lazy=schedule, integrated=integrated)
    for count in (bands, 3):
        engine = Engine(TILING, 2, bands=count)
        engine.spec = replace(engine.spec, resample=filter_)
        _equal(engine, TILING, FEW, (150, 133), (150, 133), (40, 50))


@pytest.mark.parametrize("views", [FEW, replace(FEW, merge="max"), ImageViews(Resize.parse("77x101"))], ids=str)
@pytest.mark.parametrize("confidence", [False, True])
def test_one_class_is_compared_with_its_threshold(schedule: int, views: ImageViews, confidence: bool) -> None:
    configure(lazy=schedule)
    for threshold in (0.5, 0.2, 0.8):
        _equal(Engine(TILING, 2, threshold=threshold), TILING, views, (131, 177), confidence=confidence)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("to", ["96x64", "200x77", "20x30", "long=150"])
def test_a_resized_image_equals_the_host(schedule: int, to: str, direct: bool) -> None:
    """Also straight from the logits of the one window, where the processor did it so."""
    configure(lazy=schedule)
    for blend, dtype in (("uniform", "fp16"), ("gaussian", "fp32")):
        engine = Engine(replace(TILING, blend=blend), 2, dtype=dtype)
        engine.spec = replace(engine.spec, direct=direct)
        _equal(engine, replace(TILING, blend=blend), ImageViews(Resize.parse(to)), (150, 133), (64, 96), (9, 300))


def test_rows_are_merged_a_few_at_a_time(schedule: int, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(lazy=schedule)
    monkeypatch.setattr("engines.gpu.views.layout.SCRATCH", 1)
    _equal(Engine(TILING, 3), TILING, FEW, (150, 133), (3, 40))


def test_images_are_read_with_any_strides_and_changed_afterwards(schedule: int) -> None:
    configure(lazy=schedule)
    engine = Engine(TILING, 2)
    host = on_host(engine, TILING).on_views(FEW, 1)
    four = np.zeros((150, 133, 4), np.uint8)
    four[:, :, :3] = image(150, 133)
    with opened(engine, TILING) as (plain, _, _):
        segmenter = plain.on_views(FEW)
        for picture in (image(150, 133)[::-1, ::-1], four[:, :, :3]):
            assert same(segmenter.segment(picture, True), host.segment(picture.copy(), True))
            first = segmenter.segment(picture, True)
            kept = first.labels.copy()
            segmenter.segment(255 - picture)
            assert np.array_equal(first.labels, kept)


@pytest.mark.parametrize(
    "memory", [{}, {"integrated": 1}, {"integrated": 1, "coherent": 1}], ids=["discrete", "integrated", "coherent"]
)
@pytest.mark.parametrize("filter_", ["opencv-bilinear", "pillow-bilinear"])
def test_a_folder_of_mixed_sizes_with_two_in_flight(schedule: int, memory: dict[str, int], filter_: str) -> None:
    configure(lazy=schedule, **memory)
    engine = Engine(TILING, 8)
    engine.spec = replace(engine.spec, resample=filter_)
    host = on_host(engine, TILING).on_views(FEW, 1)
    pictures = [image(*size, seed) for seed, size in enumerate([(150, 133), (64, 96), (64, 96), (40, 50), (150, 133)])]
    with opened(engine, TILING) as (plain, device, _):
        segmenter = plain.on_views(FEW)
        masks = list(segmenter.stream((picture.copy() for picture in pictures), confidence=True))
        assert segmenter.device.in_flight == 2
        assert segmenter.device.graph == device.graph == "on"
    for mask, picture in zip(masks, pictures, strict=True):
        assert same(mask, host.segment(picture, confidence=True))


@pytest.mark.parametrize("batch", [1, 8])
def test_a_frame_that_was_given_up_leaves_its_memory(schedule: int, batch: int) -> None:
    configure(lazy=schedule)
    engine = Engine(TILING, batch)
    host = on_host(engine, TILING).on_views(FEW, 1)
    with opened(engine, TILING) as (plain, device, _):
        segmenter = plain.on_views(FEW)
        for seed in range(5):  # each is begun and dropped
            segmenter.start(image(150, 133, seed))
            bands = segmenter.bands(image(150, 133, seed))
            next(bands)
            bands.close()
        running = segmenter.stream(image(150, 133, seed) for seed in range(5))
        next(running)
        running.close()
        for seed in range(3):
            picture = image(150, 133, seed)
            assert same(segmenter.segment(picture), host.segment(picture))
        assert len(device.launcher.pool.busy) + len(device.launcher.pool.idle) <= 4
        assert same(plain.segment(picture), on_host(engine, TILING).segment(picture))


@pytest.mark.parametrize("parts", [False, True])
def test_windows_and_times_are_told_view_by_view(parts: bool) -> None:
    engine, picture = Engine(TILING, 3), image(150, 133)
    on = on_host(engine, TILING).on_views(TWELVE, 1).start(picture)
    on.mask()
    told: list[tuple[int, int]] = []
    with opened(engine, TILING) as (plain, _, _):
        segmenter = plain.on_views(TWELVE)
        segmenter.device.parts = parts
        segmenter.device.on_window = lambda done, total: told.append((done, total))
        running = segmenter.start(picture)
        running.mask()
        assert segmenter.device.graph == ("off: the parts are timed one by one" if parts else "on")
    assert [(view.view, view.windows) for view in running.views] == [(view.view, view.windows) for view in on.views]
    assert all(view.engine > 0 and (view.gather > 0) is parts for view in running.views)
    assert sum(view.resize > 0 for view in running.views) == 5  # sizes that are not the image's own
    assert running.timings.windows == on.timings.windows == told[-1][0] == told[-1][1]
    assert running.timings.engine == pytest.approx(sum(view.engine for view in running.views))
    assert running.timings.stitch > 0


def test_logits_that_are_not_numbers_are_told_as_on_the_host(schedule: int) -> None:
    configure(lazy=schedule)
    engine, picture = Engine(TILING, 2), image(150, 133)
    with opened(engine, TILING) as (plain, _, _):
        segmenter = plain.on_views(FEW)
        right = segmenter.segment(picture)
        engine.poison = 3
        with pytest.raises(NotFiniteError, match="the engine's logits are NaN or infinite, "):
            segmenter.segment(picture)
        engine.poison = -1
        assert same(segmenter.segment(picture), right)


def test_too_little_memory_is_one_line_and_the_next_image_runs(schedule: int) -> None:
    configure(lazy=schedule, memory=9 << 20)
    engine = Engine(TILING, 2)
    host = on_host(engine, TILING).on_views(FEW, 1)
    with opened(engine, TILING) as (plain, _, _):
        segmenter = plain.on_views(FEW)
        message = (
            r"views: got 4 views of 1500x1000, which take 1\d\d MiB on the GPU, \d of them logits of 5 classes, "
            r"expected [89] MiB at most; give fewer or smaller --scales, --no-flip or a smaller --resize"
        )
        with pytest.raises(GpuMemoryError, match=message):
            segmenter.segment(image(1000, 1500))
        assert segmenter.device.in_flight == 1
        assert same(segmenter.segment(image(150, 133)), host.segment(image(150, 133)))


def test_a_bundle_of_before_is_built_again() -> None:
    configure(old_kernels=1)
    with opened(Engine(TILING), TILING) as (plain, _, _):
        with pytest.raises(DeployError, match="on the host; build it again here: deploy"):
            plain.on_views(FEW)
        plain.segment(image(150, 133))


def test_one_image_is_uploaded_once_and_only_labels_come_back() -> None:
    engine, picture = Engine(TILING, 4), image(150, 133)
    windows = 0
    with opened(engine, TILING) as (plain, _, _):
        segmenter = plain.on_views(TWELVE)

        def run() -> None:
            nonlocal windows
            running = segmenter.start(picture)
            running.mask()
            windows = running.timings.windows

        during(run)
        counted = during(run)
    turns = len(segmenter.device.strips(150, 133, False).steps)  # type: ignore[attr-defined]
    batches = -(-windows // 4)
    assert (counted["graphs"], counted["engines"]) == (batches, batches)
    assert counted["copies in"] == 1 + batches
    assert counted["bytes in"] == 3 * 150 * 133 + batches * 4 * 72  # the image and the windows' places
    assert counted["copies out"] == 2 * turns
    assert counted["bytes out"] == 150 * 133 + turns * 8
    assert (
        counted["kernels"] == 2 * batches + 5 + 2 * len(TWELVE.of(150, 133, TILING.labelled)) * turns
    )  # five sizes that are made
    assert (counted["waits"], counted["spins"], counted["copies within"]) == (1, 0, 0)
