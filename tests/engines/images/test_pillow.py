"""Several threads decode at once, on our terms, and Pillow is afterwards as it was."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from engines.errors import DeployError
from engines.images.read import read_image, read_picture

THREADS = 4


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_threads_decode_at_once_each_beyond_pillows_limit(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}")
    right = read_image(tmp_path / f"a.{ending}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    filters = list(warnings.filters)
    together = threading.Barrier(THREADS, timeout=30)

    def read(number: int) -> bool:
        seen = []
        # Nobody gets past here before all have opened their file; the last ones load when the first have ended.
        picture = read_picture(tmp_path / f"a.{ending}", admit=lambda count: seen.append((count, together.wait())))
        return seen[0][0] == 2000 and np.array_equal(picture.pixels, right)

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(read, range(THREADS)))
    assert Image.MAX_IMAGE_PIXELS == 10
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert warnings.filters == filters


def test_a_damaged_file_beside_others_changes_nothing_for_them(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    together = threading.Barrier(2, timeout=30)

    def read(name: str) -> str:
        try:
            return str(read_picture(tmp_path / name, admit=lambda count: together.wait() and None).pixels.shape)
        except DeployError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        whole, cut = pool.map(read, ["whole.png", "cut.png"])
    assert whole == "(64, 64, 3)"
    assert "damaged or incomplete" in cut


def test_filters_that_another_thread_sets_meanwhile_stay(tmp_path: Path) -> None:
    """warnings.catch_warnings in threads that overlap would set back each other's."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    opened, go_on = threading.Event(), threading.Event()

    def wait(count: int) -> None:
        opened.set()
        go_on.wait(30)

    before = list(warnings.filters)
    with ThreadPoolExecutor(1) as pool:
        with warnings.catch_warnings():
            reading = pool.submit(read_picture, tmp_path / "a.png", admit=wait)
            assert opened.wait(30)
        inside = list(warnings.filters)
        go_on.set()
        reading.result()
    assert warnings.filters == before == inside
