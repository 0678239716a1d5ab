"""Masks of the GPU runtime, bit by bit those of the host.  Run by test_cuda.py, with the fake driver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engines.errors import DeployError, GateError
from engines.gpu import driver
from engines.gpu import lane as lane_of_gpu
from engines.gpu import pool as cuda_pool
from engines.gpu.context import gpu_info, open_gpu, unavailable
from engines.gpu.frames import CudaFrame, FrameInStrips
from engines.gpu.host_copies import HostRun
from engines.images.write import confidence_bytes
from engines.proof.replay import replayed
from engines.tiling.device import LazyRows
from engines.tiling.placement import Margin, Tiling
from engines.views.views import ImageViews
from tests.engines.gpu.fake_cuda import counts, support
from tests.engines.gpu.fake_cuda.support import Engine, configure, image, on_host, opened, same

TILING = Tiling(64, 96, 48, 64)
SIZES = [(64, 96), (150, 333), (40, 50), (1, 1), (201, 97), (64, 97)]


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_equal_the_host(
    schedule: int, integrated: int, batch: int, confidence: bool, size: tuple[int, int]
) -> None:
    configure(lazy=schedule, integrated=integrated)
    engine = Engine(TILING, batch)
    host = on_host(engine, TILING)
    with opened(engine, TILING) as (segmenter, device, _):
        for seed in range(4):  # runs, is recorded, is replayed
            picture = image(*size, seed)
            assert same(segmenter.segment(picture, confidence), host.segment(picture, confidence))
        assert device.graph == "on"
        assert engine.enqueued == 2  # before the first frame, and to be recorded; every window replays that


@pytest.mark.parametrize("blend", ["uniform", "gaussian", "hann"])
@pytest.mark.parametrize("padding", ["zero", "edge", "reflect"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_way_to_tile_equals_the_host(schedule: int, blend: str, padding: str, dtype: str) -> None:
    configure(lazy=schedule)
    odd, inner = Tiling(50, 70, 50, 31, blend, padding), Tiling(64, 80, 33, 40, blend, padding, margin=(9, 12, 7, 8))
    for tiling, low in ((replace(TILING, blend=blend, padding=padding), None), (odd, (7, 9)), (inner, (48, 60))):
        engine = Engine(tiling, 2, low, dtype)
        host = on_host(engine, tiling)
        with opened(engine, tiling) as (segmenter, _, _):
            for size in ((131, 177), (33, 300)):
                for seed in range(2):
                    assert same(segmenter.segment(image(*size, seed), True), host.segment(image(*size, seed), True))


@pytest.mark.parametrize("bands", [1, 4, 13])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_images_of_any_number_of_bands_equal_the_host(schedule: int, dtype: str, bands: int) -> None:
    configure(lazy=schedule)
    engine = Engine(TILING, 2, dtype=dtype, bands=bands)
    host = on_host(engine, TILING)
    with opened(engine, TILING) as (segmenter, _, _):
        for size in ((150, 333), (40, 50)):
            for seed in range(3):
                picture = image(*size, seed, bands)
                assert same(segmenter.segment(picture, True), host.segment(picture, True))
        strips = list(segmenter.bands(image(150, 333, 0, bands)))
        labels = np.concatenate([band.labels for band in strips])
        assert np.array_equal(labels, host.segment(image(150, 333, 0, bands)).labels)


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_one_channel_is_compared_with_its_threshold(schedule: int, dtype: str, confidence: bool) -> None:
    configure(lazy=schedule)
    shares = []
    for threshold in (0.5, 0.2, 0.8):
        for tiling, low in ((TILING, None), (Tiling(50, 70, 50, 31, "gaussian"), (7, 9))):
            engine = Engine(tiling, 2, low, dtype, threshold=threshold)
            host = on_host(engine, tiling)
            with opened(engine, tiling) as (segmenter, _, _):
                for seed in range(3):  # runs, is recorded, is replayed
                    picture = image(131, 177, seed)
                    mask = segmenter.segment(picture, confidence)
                    assert same(mask, host.segment(picture, confidence))
            shares.append(mask.labels.mean())
    assert 1 > shares[2] > shares[0] > shares[4] > 0


def test_strips_of_what_is_read_around_a_window_equal_the_host(schedule: int) -> None:
    configure(lazy=schedule)
    tiling = Tiling(64, 80, 33, 40, padding="reflect", margin=(9, 12, 7, 8))
    engine = Engine(tiling, 2, (48, 60))
    with opened(engine, tiling) as (segmenter, _, _):
        for size in ((150, 233), (48, 61), (20, 30)):
            bands = list(segmenter.bands(image(*size)))
            right = on_host(engine, tiling).segment(image(*size)).labels
            assert np.array_equal(np.concatenate([band.labels for band in bands]), right)


def test_images_are_read_with_any_strides(schedule: int) -> None:
    configure(lazy=schedule)
    engine = Engine(TILING)
    picture = image(150, 333)[::-1, ::-1]
    with opened(engine, TILING) as (segmenter, _, _):
        assert same(segmenter.segment(picture), on_host(engine, TILING).segment(picture.copy()))


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_folder_of_mixed_sizes_with_two_in_flight(schedule: int, integrated: int, capturable: bool) -> None:
    configure(lazy=schedule, integrated=integrated)
    engine = Engine(TILING, 3, capturable=capturable)
    host = on_host(engine, TILING)
    sizes = [SIZES[i] for i in (1, 1, 1, 0, 1, 1, 4, 4, 4, 4, 4, 0, 2, 3, 5, 1, 0)]
    pictures = [image(*size, seed) for seed, size in enumerate(sizes)]
    with opened(engine, TILING) as (segmenter, device, _):
        masks = list(segmenter.stream((picture.copy() for picture in pictures), confidence=True))
        assert (device.graph == "on") is capturable
    assert len(masks) == len(pictures)
    for mask, picture in zip(masks, pictures, strict=True):
        assert same(mask, host.segment(picture, confidence=True))


class _Rows(LazyRows):
    """Rows that go from top to bottom, in memory that the next ones overwrite."""

    def __init__(self, picture: np.ndarray, there: np.ndarray | None = None) -> None:
        self._picture, self._first, self.shape, self._there = picture, 0, picture.shape, there
        self._memory = np.empty_like(picture)

    def __getitem__(self, rows: slice) -> np.ndarray:
        assert rows.start >= self._first
        self._first = rows.start
        found = self._picture[rows]
        self._memory[: len(found)] = found
        return self._memory[: len(found)]

    def blank(self, top: int, left: int, height: int, width: int) -> bool:
        return self._there is not None and not self._there[top : top + height, left : left + width].any()


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(("dtype", "margin"), [("fp32", (0, 0, 0, 0)), ("fp16", (9, 12, 7, 8))])
def test_windows_without_data_are_not_run(
    schedule: int, batch: int, dtype: str, margin: Margin, contexts: int
) -> None:  # fmt: skip
    """Whole rows of them too, and all; memory that was never written holds no numbers."""
    configure(lazy=schedule * (5 * contexts - 4))
    rng, (height, width) = np.random.default_rng(0), (430, 333)
    tiling = replace(TILING, margin=margin, stride_h=40)
    low = None if margin == (0, 0, 0, 0) else (48, 76)
    host = on_host(Engine(tiling, batch, low, dtype), tiling).segment(image(height, width), confidence=True)
    tops, lefts = tiling.placements(height, width)
    rows, columns = tiling.labelled
    for share in (0.0, 0.2):
        there = rng.random((8, 7)).repeat(54, 0)[:height].repeat(48, 1)[:, :width] < share
        touching = sum(there[top : top + rows, left : left + columns].any() for top in tops for left in lefts)
        with opened(Engine(tiling, batch, low, dtype), tiling) as (segmenter, device, _):
            device.use_contexts(contexts)
            for again in (1, 2):
                before = counts.counted()["engines"]
                bands = list(segmenter.bands(_Rows(image(height, width), there), confidence=True))
                runs = counts.counted()["engines"] - before
                labels, certainty = (np.concatenate([getattr(b, a) for b in bands]) for a in ("labels", "confidence"))
                assert np.array_equal(labels[there], host.labels[there])
                assert np.array_equal(certainty[there], host.confidence[there])
                assert device.timings.windows == again * touching
                assert again == 1 or -(-touching // batch) <= runs <= touching, "the first is run to be recorded, too"


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bands_equal_the_host(schedule: int, integrated: int, size: tuple[int, int]) -> None:
    configure(lazy=schedule, integrated=integrated)
    engine = Engine(TILING, 2)
    with opened(engine, TILING) as (segmenter, device, _):
        for seed in range(2):
            picture = image(*size, seed)
            right = on_host(engine, TILING).segment(picture, confidence=True)
            for given in (picture, _Rows(picture)):
                bands = list(segmenter.bands(given, confidence=True))
                assert [band.row0 for band in bands[1:]] == [band.row1 for band in bands[:-1]]
                assert np.array_equal(np.concatenate([band.labels for band in bands]), right.labels)
                assert np.array_equal(np.concatenate([band.confidence for band in bands]), right.confidence)
        assert device.timings.windows == 4 * len(TILING.placements(*size)[0]) * len(TILING.placements(*size)[1])


def test_an_image_that_does_not_fit_is_done_in_strips(schedule: int) -> None:
    configure(lazy=schedule, memory=1_400_000)  # two frames of the whole image would take 2.8 MB
    engine = Engine(TILING)
    pictures = [image(700, 500, seed) for seed in range(3)]
    with opened(engine, TILING) as (segmenter, device, _):
        frame = device.whole_frame(700, 500, True)
        assert isinstance(frame, FrameInStrips)
        masks = list(segmenter.stream(pictures, confidence=True))
        assert device.graph == "on"
        assert engine.enqueued == 2
        assert isinstance(device.whole_frame(60, 50, True), CudaFrame)
    for mask, picture in zip(masks, pictures, strict=True):
        assert same(mask, on_host(engine, TILING).segment(picture, confidence=True))


def test_an_image_of_a_third_of_the_memory_is_always_whole(schedule: int) -> None:
    """Two of a third fit, although the second is more than 40 % of what the first leaves."""
    configure(lazy=schedule)
    engine = Engine(TILING)
    pictures = [image(700, 500, seed) for seed in range(6)]
    with opened(engine, TILING) as (segmenter, device, gpu):
        before = support.driver().fake_used()
        segmenter.segment(pictures[0])
        size = device.launcher.pool.busy[0].blocks.device.size
        configure(lazy=schedule, memory=before + int(size / 0.31))
        taken: list[int] = []
        allocate = gpu.allocate
        gpu.allocate = lambda size: taken.append(size) or allocate(size)  # type: ignore[func-returns-value]
        for mask, picture in zip(segmenter.stream(pictures), pictures, strict=True):
            assert isinstance(device._frame, CudaFrame)
            assert same(mask, on_host(engine, TILING).segment(picture))
        assert len(taken) == 1  # beside that of before


def test_idle_memory_is_only_a_part_of_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_pool, "host_memory", lambda: 4 * 150_000)
    with opened(Engine(TILING), TILING) as (segmenter, device, _):
        pool = device.launcher.pool
        for height in (40, 150, 300, 600, 40):
            segmenter.segment(image(height, 150))
            assert sum(blocks.host.array.nbytes for blocks in pool.idle) <= 150_000
        assert support.alive()[0]["host"] <= 3  # with the ring of places


def test_what_bands_hold_does_not_grow_with_the_height() -> None:
    with opened(Engine(TILING), TILING) as (segmenter, _, _):
        used = []
        for height in (300, 3000):
            for band in segmenter.bands(image(height, 100)):
                assert band.labels.shape[0] <= TILING.window_h
            used.append(support.driver().fake_used())
        assert used[1] - used[0] <= used[0]


@pytest.mark.parametrize(
    ("how", "reason"), [(1, "BeginCapture"), (2, "SDK says 900"), (3, "Instantiate"), (4, "has no cuGraphLaunch")]
)
def test_a_refused_recording_is_told_once_and_the_frames_still_run(
    monkeypatch: pytest.MonkeyPatch, how: int, reason: str
) -> None:
    configure(refuse_capture=how)
    if how == 4:
        monkeypatch.setattr(driver, "has", lambda name: name != "cuGraphLaunch")
    told: list[tuple[str, str]] = []
    engine = Engine(TILING)
    with opened(engine, TILING, log=lambda step, text: told.append((step, text))) as (segmenter, device, _):
        for seed in range(4):
            picture = image(150, 333, seed)
            assert same(segmenter.segment(picture), on_host(engine, TILING).segment(picture))
        assert device.graph.startswith("off: ")
        assert reason in device.graph
    assert [step for step, _ in told] == ["graph"]


def test_one_graph_serves_every_size_of_any_number_of_windows(schedule: int) -> None:
    configure(lazy=schedule)
    engine = Engine(TILING, 3)
    host = on_host(engine, TILING)
    with opened(engine, TILING) as (segmenter, _, _):
        for seed, size in enumerate(((13 * 48 + 16, 4 * 64 + 96), (48, 300), (333, 97), (20, 20))):
            assert same(segmenter.segment(image(*size, seed)), host.segment(image(*size, seed)))
            bands = segmenter.bands(image(*size, seed))
            labels = np.concatenate([band.labels for band in bands])
            assert np.array_equal(labels, host.segment(image(*size, seed)).labels)
        assert support.alive()[0]["graphs"] == 1
    assert engine.enqueued == 2


def test_an_engine_that_cannot_be_recorded_is_told_before_the_first_frame() -> None:
    with opened(Engine(TILING, capturable=False), TILING) as (_, device, _):
        assert device.graph == "off: the engine cannot be recorded"


def test_parts_are_timed_one_by_one_and_otherwise_the_frame() -> None:
    windows: list[tuple[int, int]] = []
    with opened(Engine(TILING, 2), TILING) as (segmenter, device, _):
        segmenter.segment(image(150, 333))
        times = device.timings
        assert times.engine > 0
        assert times.gather == times.stitch == 0
        assert times.windows == 15
        before, device.parts = times.windows, True
        device.on_window = lambda done, total: windows.append((done, total))
        assert device.graph == "off: the parts are timed one by one"
        segmenter.segment(image(150, 333))
        list(segmenter.bands(image(150, 333)))
        assert min(times.gather, times.stitch) > 0
        assert times.windows - before == 30
        device.parts = False
        segmenter.segment(image(150, 333))
        segmenter.segment(image(150, 333))
    assert windows[:8] == [(2, 15), (4, 15), (6, 15), (8, 15), (10, 15), (12, 15), (14, 15), (15, 15)]
    assert windows[-1] == (15, 15)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_first_window_and_the_engine_alone_equal_the_host(dtype: str) -> None:
    for size in ((150, 333), (30, 200)):
        engine = Engine(TILING, 2, dtype=dtype)
        picture = image(*size)
        with opened(engine, TILING) as (segmenter, _, gpu):
            window = segmenter.first_window(picture)
            right = on_host(engine, TILING).first_window(picture)
            assert window.dtype == np.float32
            assert np.array_equal(window[0], right[0].astype(np.float16) if dtype == "fp16" else right[0])
            run = HostRun(gpu, engine)
            assert segmenter.device.engine_ms(picture) > 0
            for shift in range(2):
                assert np.array_equal(run.run(window + shift), engine.run(window + shift))
            with pytest.raises(DeployError, match="expected"):
                run.run(window[:1])
            run.close()


def test_a_frames_memory_is_its_pixels_logits_and_labels() -> None:
    """Images of ever new sizes one after another leave no graphs and few blocks."""
    with opened(Engine(TILING), TILING) as (segmenter, _, _):
        for height in range(100, 130):
            segmenter.segment(image(height, 100))
            assert support.alive()[0]["graphs"] == 1
            assert support.alive()[0]["host"] <= 4  # one at work, two idle, and the ring of places


def test_images_of_ever_new_sizes_use_each_others_memory(schedule: int) -> None:
    configure(lazy=schedule)
    engine = Engine(TILING)
    host = on_host(engine, TILING)
    pictures = [image(150 + 7 * i % 30, 300 + 11 * i % 40, i) for i in range(30)]
    with opened(engine, TILING) as (segmenter, _, gpu):
        taken: list[int] = []
        allocate = gpu.allocate
        gpu.allocate = lambda size: taken.append(size) or allocate(size)  # type: ignore[func-returns-value]
        for mask, picture in zip(segmenter.stream(pictures, confidence=True), pictures, strict=True):
            assert same(mask, host.segment(picture, confidence=True))
    assert len(taken) <= 6


@pytest.mark.parametrize("batch", [1, 8])
def test_a_frame_that_was_given_up_leaves_its_memory(schedule: int, batch: int) -> None:
    configure(lazy=schedule)
    engine = Engine(TILING, batch)
    with opened(engine, TILING) as (segmenter, device, _):
        kept = device.whole_frame(150, 333, False)
        kept.put(image(150, 333, 1))
        kept.play()
        for seed in range(9):  # each is begun and dropped
            frame = device.whole_frame(150, 333, False)
            frame.put(image(150, 333, seed))
            frame.play()
        running = segmenter.stream(image(150, 333, seed) for seed in range(9))
        next(running)
        running.close()
        for seed in range(3):
            picture = image(150, 333, seed)
            assert same(segmenter.segment(picture), on_host(engine, TILING).segment(picture))
        assert len(device.launcher.pool.busy) + len(device.launcher.pool.idle) <= 6
        assert same(kept.mask(), on_host(engine, TILING).segment(image(150, 333, 1)))
        with pytest.raises(DeployError, match="take each result once"):
            kept.mask()


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize("sizes", [((64, 96),), ((64, 96), (64, 97), (150, 333), (20, 30))], ids=["one", "mixed"])
def test_windows_of_many_images_share_a_batch(
    schedule: int, integrated: int, sizes: tuple[tuple[int, int], ...]
) -> None:
    configure(lazy=schedule, integrated=integrated)
    engine = Engine(TILING, 8)
    host = on_host(engine, TILING)
    pictures = [image(*sizes[seed % len(sizes)], seed) for seed in range(24)]
    windows = sum(len(TILING.placements(*p.shape[:2])[0]) * len(TILING.placements(*p.shape[:2])[1]) for p in pictures)
    with opened(engine, TILING) as (segmenter, device, _):
        before = counts.counted()["engines"]
        for mask, picture in zip(segmenter.stream(pictures, confidence=True), pictures, strict=True):
            assert same(mask, host.segment(picture, confidence=True))
        runs = counts.counted()["engines"] - before - 1  # that before the recording
        assert device.timings.windows == windows
        assert runs == windows // 8 if len(sizes) == 1 else runs <= windows // 8 + len(pictures) // 2


@pytest.mark.parametrize("batch", [1, 3])
def test_more_windows_than_places_on_their_way(schedule: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring of places is written again only once it was copied."""
    monkeypatch.setattr(lane_of_gpu, "RING", 4 * batch)
    configure(lazy=schedule)
    engine = Engine(TILING, batch)
    host = on_host(engine, TILING)
    with opened(engine, TILING) as (segmenter, _, _):
        for seed, size in enumerate(((500, 333), (40, 50), (150, 333))):
            assert same(segmenter.segment(image(*size, seed)), host.segment(image(*size, seed)))


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
def test_four_bytes_a_pixel_are_gathered_as_they_are(schedule: int, integrated: int) -> None:
    configure(lazy=schedule, integrated=integrated)
    engine = Engine(TILING, 2)
    host = on_host(engine, TILING)
    with opened(engine, TILING) as (segmenter, device, _):
        for seed, size in enumerate(((150, 333), (64, 96), (40, 50))):
            plain = image(*size, seed)
            four = np.full((*size, 4), 99, np.uint8)
            four[..., :3] = plain
            for picture in (four[..., :3], four[::-1][..., :3]):
                right = host.segment(picture, confidence=True)
                assert same(segmenter.segment(picture, confidence=True), right)
                assert device._frame is not None
                assert device._frame._used.plan.pixel == 4
                bands = list(segmenter.bands(picture))
                assert np.array_equal(np.concatenate([band.labels for band in bands]), right.labels)
        edge = np.zeros(4 * 96 * 64 - 1, np.uint8)  # the last pixel has no fourth byte
        view = np.lib.stride_tricks.as_strided(edge, (64, 96, 3), (4 * 96, 4, 1))
        assert same(segmenter.segment(view), host.segment(np.zeros((64, 96, 3), np.uint8)))


def test_a_board_that_caches_the_hosts_memory_needs_no_copy_of_the_image(schedule: int) -> None:
    engine = Engine(TILING)
    for coherent, windows, copies in ((0, 15, 1), (1, 15, 0), (0, 1, 0)):
        configure(lazy=schedule, integrated=1, coherent=coherent)
        size = (150, 333) if windows == 15 else (64, 96)
        with opened(engine, TILING) as (segmenter, _, _):
            segmenter.segment(image(*size))
            taken = counts.during(lambda size=size: segmenter.segment(image(*size)))  # type: ignore[misc]
            places = 64 * windows
            assert taken["bytes in"] == places * 72 // 64 + copies * 3 * size[0] * size[1]


def test_the_gpu_is_shared_by_who_opens_it_inside() -> None:
    assert unavailable() is None
    assert str(gpu_info()) == "cuda sm_87 Fake GPU [1 SM, 1 GB], driver for CUDA 13.0"
    assert support.alive()[0] == {}
    with open_gpu() as gpu:
        with open_gpu() as again:
            assert again is gpu
        assert support.alive()[0]["contexts"] == 1
        memory = gpu.allocate(1000)
        assert memory.address % 256 == 0
        assert gpu.free_memory() == gpu.info.memory - memory.size
        data = np.arange(250, dtype=np.float32)
        gpu.upload(memory.address, data)
        back = np.zeros_like(data)
        gpu.download(back, memory.address)
        assert np.array_equal(back, data)
        memory.free()
        memory.free()
        forgotten = gpu.allocate(5000)
    assert support.alive()[0] == {}  # the GPU frees what was forgotten
    forgotten.free()
    with open_gpu() as other:
        assert other is not gpu
    with pytest.raises(DeployError):
        gpu.synchronize()


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_replayed_frame_is_verified_bit_by_bit(schedule: int, integrated: int, dtype: str) -> None:
    configure(lazy=schedule, integrated=integrated)
    engine = Engine(TILING, 2, dtype=dtype)
    with opened(engine, TILING) as (segmenter, _, _):
        (agreement,) = replayed(image(150, 333), segmenter)
        assert (agreement.step, agreement.labels) == ("replayed frame", 1.0)
        assert support.alive()[0]["graphs"] == 1
    with opened(Engine(TILING, 2, capturable=False), TILING) as (segmenter, _, _):
        assert replayed(image(150, 333), segmenter) == []


def test_an_engine_whose_work_is_not_in_the_recording_is_caught(schedule: int) -> None:
    """It runs on a stream of its own, so that a replay stitches the logits that the frame before left."""

    class Elsewhere(Engine):
        def enqueue(self, source: int, target: int, stream: int) -> None:
            if self.enqueued < 2 * runs:  # of the two pictures, part by part, and not when it is recorded
                super().enqueue(source, target, stream)

    configure(lazy=schedule)
    engine = Elsewhere(TILING)
    runs = len(TILING.placements(150, 333)[0]) * len(TILING.placements(150, 333)[1])
    with (
        opened(engine, TILING) as (segmenter, _, _),
        pytest.raises(GateError, match="replayed frame: the logits"),
    ):
        replayed(image(150, 333), segmenter)


def test_page_locked_memory_in_flight_has_a_limit(schedule: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image whose frames would lock half of what the host has free is done in strips, which lock a few rows."""
    configure(lazy=schedule)
    engine, picture = Engine(TILING), image(700, 500)
    with opened(engine, TILING) as (segmenter, device, _):
        monkeypatch.setattr(cuda_pool, "available_memory", lambda: 4 * 700 * 500 * 2)
        assert same(segmenter.segment(picture), on_host(engine, TILING).segment(picture))
        assert isinstance(device._frame, FrameInStrips)
        monkeypatch.setattr(cuda_pool, "available_memory", lambda: 8 * 700 * 500 * 5)
        assert same(segmenter.segment(image(700, 501)), on_host(engine, TILING).segment(image(700, 501)))
        assert isinstance(device._frame, CudaFrame)


def test_on_a_board_free_memory_is_what_linux_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver counts caches of files as used, which are most of the memory of a board that has run for a while."""
    from engines.gpu import context

    monkeypatch.setattr(context, "available_memory", lambda: 123 << 20)
    for integrated, free in ((1, 123 << 20), (0, 1 << 30)):
        configure(integrated=integrated)
        with open_gpu() as gpu:
            assert gpu.free_memory() == free


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize("size", [(150, 133), (1, 1)], ids=str)
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_confidence_comes_as_the_byte_that_is_written(
    schedule: int, integrated: int, size: tuple[int, int], threshold: float | None
) -> None:
    """Whole, in bands, in strips for want of memory, and of several views; floats where they are asked for."""
    configure(lazy=schedule * 6, integrated=integrated)
    engine, picture = Engine(TILING, 2, threshold=threshold), image(*size)
    views = ImageViews(scales=(1.0, 1.5), flip=True)
    host = on_host(engine, TILING)
    with opened(engine, TILING) as (plain, device, _):
        device.use_contexts(2)
        for segmenter, right in (
            (plain, host.segment(picture, True)),
            (plain.on_views(views), host.on_views(views, 1).segment(picture, True)),
        ):
            assert right.confidence is not None
            expected = confidence_bytes(right.confidence)
            for wanted, values in (("bytes", expected), (True, right.confidence), ("bytes", expected)):
                mask = segmenter.segment(picture, wanted)  # type: ignore[arg-type]
                bands = list(segmenter.bands(picture, wanted))  # type: ignore[arg-type]
                for found in (mask.confidence, np.concatenate([band.confidence for band in bands])):
                    assert found is not None
                    assert found.dtype == values.dtype
                    assert found.tobytes() == values.tobytes()
                assert np.array_equal(mask.labels, right.labels)
        strips = FrameInStrips(device.launcher, size, "bytes")
        strips.put(picture)
        strips.play()
        found = strips.mask().confidence
        assert found is not None
        assert found.tobytes() == confidence_bytes(host.segment(picture, True).confidence).tobytes()


def test_kernels_that_make_no_bytes_give_floats() -> None:
    configure(old_kernels=1)
    engine, picture = Engine(TILING), image(150, 333)
    with opened(engine, TILING) as (segmenter, _, _):
        mask = segmenter.segment(picture, "bytes")
        assert same(mask, on_host(engine, TILING).segment(picture, True))
        assert same(on_host(engine, TILING).segment(picture, "bytes"), mask)
