"""Two execution contexts that take turns: masks bit by bit the host's, in whatever order streams run.

Run by test_cuda.py, with the fake driver.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engines.errors import DeployError, NotFiniteError
from engines.gpu.frames import CudaFrame
from engines.proof.contexts import measure
from engines.proof.replay import replayed
from engines.tiling.placement import Tiling
from engines.views.views import ImageViews
from tests.engines.gpu.fake_cuda import support
from tests.engines.gpu.fake_cuda.support import Bright, Engine, configure, image, on_host, opened, same

TILING = Tiling(64, 96, 48, 64)
SIZES = [(150, 333), (64, 96), (64, 96), (40, 50), (400, 97), (1, 1), (64, 97), (400, 97), (64, 96), (150, 333)]
ORDERS = [0, 1, *range(2, 9)]  # at once, late, drawn


@pytest.mark.parametrize("integrated", [0, 1], ids=["discrete", "integrated"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_mixed_folder_equals_the_host(integrated: int, batch: int) -> None:
    engine = Engine(TILING, batch)
    host = on_host(engine, TILING)
    pictures = [image(*size, seed) for seed, size in enumerate(SIZES)]
    right = [host.segment(picture, True) for picture in pictures]
    for order in ORDERS:
        configure(lazy=order, integrated=integrated)
        with opened(engine, TILING) as (segmenter, device, _):
            device.use_contexts(2)
            assert device.contexts == "2"
            masks = list(segmenter.stream(pictures, confidence=True))
            assert device.graph == "on"
        assert all(same(mask, expected) for mask, expected in zip(masks, right, strict=True)), order


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_strips_and_tall_images_equal_the_host(batch: int) -> None:
    """Rows of windows overwrite the logits of rows before them, which the other lane's must not read any more."""
    engine = Engine(TILING, batch)
    host = on_host(engine, TILING)
    pictures = [image(*size, seed) for seed, size in enumerate([(500, 96), (400, 161)])]
    right = [host.segment(picture, True) for picture in pictures]
    for order in ORDERS:
        configure(lazy=order)
        with opened(engine, TILING) as (segmenter, device, _):
            device.use_contexts(2)
            for picture, expected in zip(pictures, right, strict=True):
                assert same(segmenter.segment(picture, True), expected), order
                bands = list(segmenter.bands(picture, True))
                assert np.array_equal(np.concatenate([band.labels for band in bands]), expected.labels), order


@pytest.mark.parametrize("filter_", ["opencv-bilinear", "pillow-bilinear"])
@pytest.mark.parametrize("batch", [1, 3])
def test_views_equal_the_host(batch: int, filter_: str) -> None:
    engine = Engine(TILING, batch)
    engine.spec = replace(engine.spec, resample=filter_)
    views = ImageViews(scales=(0.75, 1.0, 1.5), flip=True)
    host = on_host(engine, TILING).on_views(views, 1)
    pictures = [image(*size, seed) for seed, size in enumerate([(300, 96), (40, 50), (150, 333)])]
    right = [host.segment(picture, True) for picture in pictures]
    for order in ORDERS[:6]:
        configure(lazy=order)
        with opened(engine, TILING) as (plain, device, _):
            device.use_contexts(2)
            segmenter = plain.on_views(views)
            masks = list(segmenter.stream(pictures, confidence=True))
        assert all(same(mask, expected) for mask, expected in zip(masks, right, strict=True)), order


def test_nothing_of_a_second_context_stays() -> None:
    engine = Engine(TILING)
    with opened(engine, TILING) as (segmenter, device, _):
        before = support.driver().fake_used()
        for _ in range(2):
            device.use_contexts(2)
            segmenter.segment(image(150, 333))
            device.use_contexts(1)
            assert device.contexts == "1"
        assert support.driver().fake_used() - before <= device.launcher.pool.busy[0].blocks.device.size
        assert support.alive()[0]["graphs"] == 1
        device.use_contexts(2)
        segmenter.segment(image(150, 333))
    assert [context.closed for context in engine.contexts] == [True] * 3
    assert [context.enqueued for context in engine.contexts] == [2] * 3  # before it is recorded, and to be


@pytest.mark.parametrize("order", [0, 1, 5])
def test_a_refused_context_is_told_and_one_does_all(order: int) -> None:
    configure(lazy=order)
    told: list[tuple[str, str]] = []
    engine = Engine(TILING)
    engine.refuses = "no memory left while making one more execution context"
    with opened(engine, TILING, log=lambda step, text: told.append((step, text))) as (segmenter, device, _):
        device.use_contexts(2)
        assert device.contexts == f"1: engine: {engine.refuses}"
        assert same(segmenter.segment(image(150, 333)), on_host(engine, TILING).segment(image(150, 333)))
    assert told == [("contexts", f"one execution context, not two: engine: {engine.refuses}")]


@pytest.mark.parametrize("order", [0, 1, 5])
@pytest.mark.parametrize("capturable", [True, False])
def test_a_context_that_refuses_its_first_run_is_not_used(order: int, capturable: bool) -> None:
    """As SDKs do that take memory, or compile, only then; no image is to fail for it, nor the measurement."""

    class Late(Engine):
        def another(self) -> Engine:
            made = super().another()
            made.late = True  # type: ignore[attr-defined]
            return made

        def enqueue(self, source: int, target: int, stream: int) -> None:
            if hasattr(self, "late"):
                raise DeployError("engine: no memory for its first run")
            super().enqueue(source, target, stream)

    configure(lazy=order)
    engine = Late(TILING, capturable=capturable)
    with opened(engine, TILING) as (segmenter, device, _):
        assert str(measure(segmenter, image(64, 96))) == "one execution context: engine: no memory for its first run"
        device.use_contexts(2)
        assert device.contexts == "1: engine: no memory for its first run"
        assert same(segmenter.segment(image(150, 333)), on_host(engine, TILING).segment(image(150, 333)))
    assert all(context.closed for context in engine.contexts)


@pytest.mark.parametrize("batch", [1, 3])
def test_contexts_and_parts_may_change_while_images_are_under_way(batch: int) -> None:
    engine = Engine(TILING, batch)
    host, pictures = on_host(engine, TILING), [image(150, 333, seed) for seed in range(7)]
    right = [host.segment(picture) for picture in pictures]
    for order in ORDERS:
        configure(lazy=order)
        with opened(engine, TILING) as (segmenter, device, _):
            running = [segmenter.start(pictures[0])]
            for picture, (contexts, parts) in zip(
                pictures[1:], [(2, False), (2, True), (2, False), (1, False), (2, False), (2, True)], strict=True
            ):
                device.parts = parts
                device.use_contexts(contexts)
                running.append(segmenter.start(picture))
            masks = [each.mask() for each in running]
        assert all(same(mask, expected) for mask, expected in zip(masks, right, strict=True)), order


@pytest.mark.parametrize(("views", "alone"), [(False, False), (True, False), (False, True)])
def test_an_image_gets_the_memory_of_spare_contexts(views: bool, alone: bool) -> None:
    """It is neither refused nor cut into strips because of the second, or of the one that the engine alone is timed in;
    and it is told.
    """

    class Large(Engine):
        """Whose contexts take memory of the GPU, as SDKs' do."""

        def another(self) -> Engine:
            made = super().another()
            made.memory = gpu.allocate(900_000)  # type: ignore[attr-defined]
            return made

        def close(self) -> None:
            super().close()
            self.memory.free()  # type: ignore[attr-defined]

    engine, picture = Large(TILING), image(400, 500)
    host, several = on_host(engine, TILING), ImageViews(scales=(1.0, 1.5))
    told: list[str] = []
    with opened(engine, TILING, log=lambda step, text: told.append(text)) as (plain, device, gpu):
        device.use_contexts(1 if alone else 2)
        small = plain.segment(image(64, 96))
        if alone:
            device.engine_ms(image(64, 96))
        assert (device.contexts, told) == ("1" if alone else "2", [])
        segmenter = plain.on_views(several) if views else plain
        if views:
            wanted = segmenter.device._setup.plan((400, 500), 4, True).device  # type: ignore[attr-defined]
        else:
            wanted = 2 * device.launcher.plan((400, 500), 4, True, whole=True).device
        configure(memory=support.driver().fake_used() - 900_000 + int(wanted / 0.8) + 300_000)
        mask = segmenter.segment(picture, True)
        assert device.contexts == ("1" if alone else "1: an image wanted the memory of the second")
        assert views or isinstance(device._frame, CudaFrame)
        assert same(mask, (host.on_views(several, 1) if views else host).segment(picture, True))
        assert same(plain.segment(image(64, 96)), small)
        if alone:  # in the context of the frames now, and not once more in one for which there is no room
            assert device.engine_ms(image(64, 96)) > 0
            assert same(segmenter.segment(picture, True), mask)
    assert told == ([] if alone else ["one execution context, not two: an image wanted the memory of the second"])


@pytest.mark.parametrize("order", [0, 1, 7])
def test_the_engine_alone_has_a_context_of_its_own(order: int) -> None:
    """What serves frames is replayed, and nothing else is started in its context once it was recorded."""
    configure(lazy=order)
    for contexts in (1, 2):
        engine, picture = Engine(TILING), image(150, 333)
        right = on_host(engine, TILING).segment(picture)
        with opened(engine, TILING) as (segmenter, device, _):
            device.use_contexts(contexts)
            for _ in range(3):
                assert same(segmenter.segment(picture), right)
                assert device.engine_ms(picture) > 0
            assert [engine.enqueued, *(each.enqueued for each in engine.contexts)] == [2] * (contexts + 1)


def test_the_parts_of_two_contexts_are_timed_on_one() -> None:
    for order in ORDERS[:6]:
        configure(lazy=order)
        engine, pictures = Engine(TILING, 2), [image(150, 333, seed) for seed in range(3)]
        right = [on_host(engine, TILING).segment(picture) for picture in pictures]
        with opened(engine, TILING) as (segmenter, device, _):
            device.use_contexts(2)
            for parts in (False, True, False, True):
                device.parts = parts
                masks = list(segmenter.stream(pictures))
                assert all(same(mask, expected) for mask, expected in zip(masks, right, strict=True))
            assert min(device.timings.gather, device.timings.stitch) > 0
            device.parts = False
            (agreement,) = replayed(pictures[0], segmenter)
            assert agreement.labels == 1.0


def test_the_parts_of_two_contexts_are_the_parts() -> None:
    """By a clock on which a run of the engine takes 1 ms and all else nothing."""
    configure(clock=2)
    with opened(Engine(TILING, 2), TILING) as (segmenter, device, _):
        device.use_contexts(2)
        device.parts = True
        segmenter.segment(image(150, 333))  # 15 windows
        times = device.timings
        assert times.engine == pytest.approx(8e-3)
        assert times.gather == times.stitch == 0


def test_no_numbers_and_refusals_are_told_of_their_image_alone() -> None:
    class Fickle(Bright):
        broken = False

        def enqueue(self, source: int, target: int, stream: int) -> None:
            if Fickle.broken:
                raise DeployError("engine: the SDK says no")
            super().enqueue(source, target, stream)

    for order in ORDERS[:6]:
        configure(lazy=order)
        engine = Fickle(TILING, capturable=False)
        pictures = [image(64, 96, seed) for seed in range(6)]
        pictures[3][:] = 255
        with opened(engine, TILING) as (segmenter, device, _):
            device.use_contexts(2)
            running = [segmenter.start(picture) for picture in pictures]
            with pytest.raises(NotFiniteError):
                running.pop(3).mask()
            for each, picture in zip(running, [*pictures[:3], *pictures[4:]], strict=True):
                assert same(each.mask(), on_host(Engine(TILING), TILING).segment(picture))
            Fickle.broken = True
            with pytest.raises(DeployError, match="the SDK says no"):
                segmenter.segment(pictures[0])
            Fickle.broken = False
            assert same(segmenter.segment(pictures[0]), on_host(Engine(TILING), TILING).segment(pictures[0]))


def test_how_many_are_used_is_what_was_measured() -> None:
    """On a GPU where engines wait for one another, and on one where they run side by side."""
    for clock, used, two_ms in ((1, 1, 1.0), (2, 2, 0.5)):
        configure(clock=clock)
        with opened(Engine(TILING), TILING) as (segmenter, device, _):
            found = measure(segmenter, image(100, 150))
            assert (found.used, found.one_ms, found.two_ms) == (used, 1.0, two_ms)
            assert device.contexts == str(used)
    assert str(found) == "1 ms a batch with one execution context, 0.5 with two in turns: both take them"


def test_a_measurement_that_others_on_the_gpu_disturb_settles_nothing() -> None:
    def measured(seconds: list[float]) -> tuple[int, bool, str]:
        """With these times of a batch with two, beside 1 ms with one."""
        configure(clock=2)
        with opened(Engine(TILING), TILING) as (segmenter, device, _):
            left = iter(seconds)
            device.batch_ms = lambda batches, contexts: 1.0 if contexts == 1 else next(left)  # type: ignore[method-assign]
            found = measure(segmenter, image(100, 150))
            assert device.contexts == str(found.used)
            return found.used, found.settled, str(found)

    assert measured([0.5, 0.9, 0.6, 1.4, 1.2, 0.7, 1.1]) == (
        1, False,
        "1 ms a batch with one execution context, 0.9 with two in turns: one takes them, as rounds were too far apart "
        "to tell, as where others use the GPU",
    )  # fmt: skip
    assert measured([0.5, 3.0, 0.6, 0.7, 0.9, 0.8, 0.6])[:2] == (2, True)  # one that was disturbed is no matter
    assert measured([0.96, 0.98, 0.97, 0.96, 0.98, 0.97, 0.96])[:2] == (2, True)  # nothing hangs on it
    assert measured([1.1, 1.9, 1.3, 1.2, 0.5, 1.1, 1.0])[:2] == (1, True)


def test_where_there_is_nothing_to_measure_it_is_said() -> None:
    configure(integrated=1)
    with opened(Engine(TILING), TILING) as (segmenter, _, _):
        assert "host's memory" in str(measure(segmenter, image(64, 96)))
    configure()
    engine = Engine(TILING)
    engine.refuses = "has one"
    with opened(engine, TILING) as (segmenter, _, _):
        assert str(measure(segmenter, image(64, 96))) == "one execution context: engine: has one"


def test_two_whose_bits_differ_are_not_used() -> None:
    class Off(Engine):
        """The second context rounds otherwise."""

        def another(self) -> Engine:
            made = super().another()
            made._bias = made._bias + np.float32(1e-3)
            return made

    configure(clock=2)
    with opened(Off(TILING), TILING) as (segmenter, device, _):
        found = measure(segmenter, image(100, 150))
        assert (found.used, found.two_ms, device.contexts) == (1, 0.5, "1")
        assert "the logits" in found.why
