"""Rasters by windows, against the whole image in memory, and against what rasterio and GDAL make of the files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.errors import DeployError
from engines.rasters import run as runs
from engines.rasters.cut import parts
from engines.rasters.run import RasterOptions, run_raster
from engines.segmenter import Segmenter, open_segmenter
from engines.tiling.placement import Tiling
from tests.engines.rasters.maps import COEFFICIENTS, read, write

rasterio = pytest.importorskip("rasterio", reason="rasterio, which reads rasters, is not installed")
PLACE = rasterio.Affine(*COEFFICIENTS)
HEIGHT, WIDTH = 650, 1150


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several panels, and several parts in each, of a small raster."""
    monkeypatch.setattr(runs, "HELD", 0)
    monkeypatch.setattr(runs, "ROWS", 512)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (HEIGHT // 10, WIDTH // 10, 3), np.uint8)
    noise = rng.integers(0, 40, (HEIGHT, WIDTH, 3), np.uint8)
    return (coarse.repeat(10, 0).repeat(10, 1) // 2 + noise).astype(np.uint8)


@pytest.fixture
def segmenter(tiny_bundle: Path):  # type: ignore[no-untyped-def]
    with open_segmenter(tiny_bundle) as (opened, _):
        yield opened


def run(segmenter: Segmenter, path: Path, target: Path, **options: object) -> runs.RasterReport:
    return run_raster(segmenter, path, target, RasterOptions(**options), {"engine": "test"})  # type: ignore[arg-type]


def test_a_raster_has_the_pixels_of_the_whole_image(segmenter: Segmenter, image: np.ndarray, tmp_path: Path) -> None:
    """Bit for bit, in several panels and parts; and its place, colours and class names."""
    source, target = write(tmp_path / "a.tif", image), tmp_path / "out" / "a.tif"
    report = run(segmenter, source, target, confidence=True)
    expected = segmenter.segment(image, confidence=True)
    assert np.array_equal(read(target), expected.labels)
    certainty = (expected.confidence * 255 + 0.5).astype(np.uint8)
    assert np.array_equal(read(tmp_path / "out" / "a.confidence.tif"), certainty)
    assert len(np.unique(expected.labels)) > 2
    with rasterio.open(target) as file:
        assert (file.crs, file.transform, file.nodata) == (rasterio.CRS.from_epsg(32632), PLACE, 255)
        assert file.profile["tiled"]
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.overviews(1)
        assert file.colormap(1)[1] == (*segmenter.spec.palette[1], 255)
        assert file.tags()["CLASS_1"] == segmenter.spec.classes[1]
    shares = {segmenter.spec.classes[k]: round(float((expected.labels == k).mean()), 6) for k in range(5)}
    assert report.classes == {name: share for name, share in shares.items() if share}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.confidence.tif", "a.tif"]


def test_panels_hold_all_windows_of_what_they_decide() -> None:
    """Whatever the sizes: alone, the windows of a part lie where they lie among all."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        window, length = int(rng.integers(3, 60)), int(rng.integers(1, 900))
        tiling = Tiling(window, window, int(rng.integers(1, window + 1)), int(rng.integers(1, window + 1)))
        starts = tiling.placements(1, length)[1]
        step, begin = int(rng.integers(1, 20)), int(rng.integers(0, length))
        end = int(rng.integers(begin + 1, length + 1))
        most = -(-(window + step) // tiling.stride_w) + 1 + int(rng.integers(0, 5))
        margin = int(rng.integers(0, 2) * rng.integers(0, 2 * window))
        found = parts(starts, window, length, most, step, (begin, end), margin)
        assert [part.kept[0] for part in found] == [begin, *(part.kept[1] for part in found[:-1])]
        assert found[-1].kept[1] == end
        for part in found:
            first, last = part.seen
            alone = [first + start for start in tiling.placements(1, last - first)[1]]
            touching = [start for start in starts if start < part.kept[1] and start + window > part.kept[0]]
            assert set(touching) <= set(alone) <= set(starts)
            assert first <= max(touching[0] - margin, 0)
            assert last >= min(touching[-1] + window + margin, length)
            assert margin or len(alone) <= most + 1


@pytest.mark.parametrize("box", [(100, 37, 900, 600), (0, 0, 3, 2), (1100, 600, 500, 500)])
def test_a_window_is_cut_out_of_the_whole(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path, box: tuple[int, int, int, int]
) -> None:
    x, y, width, height = box
    source = write(tmp_path / "a.tif", image)
    run(segmenter, source, tmp_path / "window.tif", window=box)
    expected = segmenter.segment(image).labels[y : y + height, x : x + width]
    assert np.array_equal(read(tmp_path / "window.tif"), expected)
    with rasterio.open(tmp_path / "window.tif") as file:
        bounds = file.bounds
        assert file.transform == PLACE @ rasterio.Affine.translation(x, y)
    run(segmenter, source, tmp_path / "bbox.tif", bbox=tuple(bounds))
    assert np.array_equal(read(tmp_path / "bbox.tif"), expected)


def test_what_lies_outside_is_named(segmenter: Segmenter, image: np.ndarray, tmp_path: Path) -> None:
    source = write(tmp_path / "a.tif", image)
    with pytest.raises(DeployError, match=r"--window: got rows 2000 to 2010, .* which has 650 rows and 1150 columns"):
        run(segmenter, source, tmp_path / "b.tif", window=(0, 2000, 10, 10))
    plain = tmp_path / "plain.tif"
    Image.fromarray(image[:100, :100]).save(plain)
    with pytest.raises(DeployError, match="--bbox: the raster has no map coordinates"):
        run(segmenter, plain, tmp_path / "b.tif", bbox=(0, 0, 1, 1))
    assert not (tmp_path / "b.tif").exists()


@pytest.mark.parametrize("how", ["nodata", "alpha", "mask"])
def test_where_there_is_no_data_there_is_no_label_and_no_work(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path, how: str
) -> None:
    there = np.zeros((HEIGHT, WIDTH), bool)
    there[300:500, 200:420] = True
    filled = np.where(there[:, :, None], np.maximum(image, 1), 0).astype(np.uint8)
    source = tmp_path / "a.tif"
    if how == "alpha":
        write(source, np.dstack([filled, (there * 255).astype(np.uint8)]), photometric="RGB", alpha="yes")
    else:
        write(source, filled, **({"nodata": 0} if how == "nodata" else {}))
    if how == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source, "r+") as file:
            file.write_mask(there)
    report = run(segmenter, source, tmp_path / "b.tif")
    expected = np.where(there, segmenter.segment(filled).labels, 255)
    assert np.array_equal(read(tmp_path / "b.tif"), expected)
    tops, lefts = segmenter.tiling.placements(HEIGHT, WIDTH)
    touching = sum(there[top : top + 64, left : left + 96].any() for top in tops for left in lefts)
    assert touching <= report.windows <= touching + 7, "a column of windows twice, and the first one of all"
    run(segmenter, source, tmp_path / "c.tif", keep_nodata=True, confidence=True)
    whole = segmenter.segment(filled, confidence=True)
    assert np.array_equal(read(tmp_path / "c.tif"), whole.labels)
    assert np.array_equal(read(tmp_path / "c.confidence.tif"), (whole.confidence * 255 + 0.5).astype(np.uint8))


@pytest.mark.parametrize("how", ["nodata", "mask"])
def test_what_lies_hidden_is_seen_as_it_is_in_the_file(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path, how: str
) -> None:
    """By windows that see something else, too, wherever the parts begin that are read at once."""
    there = np.zeros((HEIGHT, WIDTH), bool)
    there[:90] = there[600:] = True
    white = np.where(there[:, :, None], np.minimum(image, 254), 255).astype(np.uint8)
    source = write(tmp_path / "a.tif", white, **({"nodata": 255} if how == "nodata" else {}))
    if how == "mask":
        with rasterio.open(source, "r+") as file:
            file.write_mask(there)  # beside it, as a.tif.msk
    run(segmenter, source, tmp_path / "b.tif")
    assert np.array_equal(read(tmp_path / "b.tif"), np.where(there, segmenter.segment(white).labels, 255))


class _Unpadded:
    """Logits that depend on the corners of what a window sees beyond what it labels."""

    def run(self, windows: np.ndarray) -> np.ndarray:
        corners = [(0, 0), (16, 20), (0, 20), (16, 0), (9, 12)]
        return np.stack([windows[:, k % 3, y : y + 48, x : x + 60] for k, (y, x) in enumerate(corners)], 1)


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_a_network_that_pads_nothing(segmenter: Segmenter, image: np.ndarray, tmp_path: Path, padding: str) -> None:
    """In panels, in a part of the raster, and in shards it reads what lies around them."""
    tiling = Tiling(64, 80, 33, 40, padding=padding, margin=(9, 12, 7, 8))
    unpadded = Segmenter.on_host(_Unpadded(), segmenter.spec, tiling)  # type: ignore[arg-type]
    expected = unpadded.segment(image).labels
    source = write(tmp_path / "a.tif", image)
    before = unpadded.device.timings.windows
    report = run(unpadded, source, tmp_path / "b.tif")
    assert np.array_equal(read(tmp_path / "b.tif"), expected)
    assert before <= report.windows < 1.4 * before, "what is seen for the margin alone is not run"
    run(unpadded, source, tmp_path / "c.tif", window=(300, 200, 333, 111))
    assert np.array_equal(read(tmp_path / "c.tif"), expected[200:311, 300:633])
    for index in (2, 1):
        run(unpadded, source, tmp_path / "d.tif", shard=(index, 2))
    assert np.array_equal(read(tmp_path / "d.tif"), expected)


def test_nodata_of_every_band_its_own(segmenter: Segmenter, image: np.ndarray, tmp_path: Path) -> None:
    image = image[:120, :200].copy()
    image[30:60, 50:90] = 0, 1, 255
    image[80:90, 50:90] = 0, 1, 2  # is something
    write(tmp_path / "a.tif", image)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>{nodata}</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource>'
        "</VRTRasterBand>"
        for band, nodata in ((1, 0), (2, 1), (3, 255))
    )
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="200" rasterYSize="120">{bands}</VRTDataset>')
    run(segmenter, tmp_path / "a.vrt", tmp_path / "b.tif")
    expected = segmenter.segment(image).labels
    expected[30:60, 50:90] = 255
    assert np.array_equal(read(tmp_path / "b.tif"), expected)


def test_what_no_network_takes_is_named(segmenter: Segmenter, image: np.ndarray, tmp_path: Path) -> None:
    part = image[:70, :100]
    source = write(tmp_path / "complex.tif", part.astype(np.complex64))
    with pytest.raises(DeployError, match="got complex numbers, expected real ones"):
        run(segmenter, source, tmp_path / "b.tif", scale=(0, 255))
    with pytest.raises(DeployError, match=r"got 3 band\(s\), expected 5 for --bands at least"):
        run(segmenter, write(tmp_path / "a.tif", part), tmp_path / "b.tif", bands=(1, 2, 5))
    report = run(segmenter, write(tmp_path / "int.tif", part.astype(np.int32)), tmp_path / "b.tif")
    assert "too dark" in report.note
    colours = {index: (index // 8, 100, 200, 255) for index in range(700)}  # more than a byte counts
    source = write(tmp_path / "colours.tif", part[:, :, :1].astype(np.uint16) * 2, photometric="palette")
    with rasterio.open(source, "r+") as file:
        file.write_colormap(1, colours)
    run(segmenter, source, tmp_path / "b.tif")
    seen = np.array([colours[2 * value][:3] for value in range(256)], np.uint8)[part[:, :, 0]]
    assert np.array_equal(read(tmp_path / "b.tif"), segmenter.segment(seen).labels)


RPCS = {"LINE_OFF": "40.5", "SAMP_OFF": "77", "LINE_SCALE": "41", "SAMP_SCALE": "78", "ERR_BIAS": "1.5",
        "LAT_OFF": "50.25", "LAT_SCALE": "0.1", "LONG_OFF": "10", "LONG_SCALE": "0.1", "HEIGHT_OFF": "300",
        "HEIGHT_SCALE": "500"}  # fmt: skip
RPCS |= {
    f"{axis}_{part}_COEFF": " ".join(str((k + 1) / 8) for k in range(20))
    for axis in ("LINE", "SAMP")
    for part in ("NUM", "DEN")
}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("how", "window"), [("points", None), *((how, (30, 20, 60, 40)) for how in ("points", "rpcs", "both"))]
)
def test_labels_lie_on_the_map_by_what_the_raster_does(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path, how: str, window: tuple[int, int, int, int] | None
) -> None:
    """By ground control points, or a camera's polynomials: as rasterio reads them, and puts pixels by them."""
    from rasterio.transform import GCPTransformer

    pyogrio = pytest.importorskip("pyogrio", reason="pyogrio, which writes polygons, is not installed")
    tifffile = pytest.importorskip("tifffile", reason="tifffile, which reads tags by their numbers, is not installed")
    part, (left, top) = image[:82, :156], (window or (0, 0))[:2]
    place = {} if how == "rpcs" else {"transform": None, "crs": None}
    source, target = write(tmp_path / "a.tif", part, **place), tmp_path / "b.tif"
    with rasterio.open(source, "r+") as file:
        if how != "points":
            file.update_tags(ns="RPC", **RPCS)
        if how != "rpcs":
            points = [(0.25, 0.5, 10.1), (0, 155.75, 10.9), (80, 1 / 3, 10.2), (81, 150, 10.8)]
            corners = [rasterio.control.GroundControlPoint(r, c, x, 50 - r / 1e3, 7.5) for r, c, x in points]
            file.gcps = corners, rasterio.CRS.from_epsg(4326)
    report = run(segmenter, source, target, window=window, polygons="gpkg")
    with rasterio.open(source) as before, rasterio.open(target) as after:
        assert after.crs == before.crs
        x, y = [40, 66.5], [25, 44.5]  # within the window
        if how != "points":
            offsets = {"LINE_OFF": float(RPCS["LINE_OFF"]) - top, "SAMP_OFF": float(RPCS["SAMP_OFF"]) - left}
            tags, kept = before.tags(ns="RPC"), after.tags(ns="RPC")
            assert {key: float(kept[key]) for key in offsets} == offsets
            assert {key: kept[key] for key in tags if key not in offsets} == {
                key: tags[key] for key in tags if key not in offsets
            }
            assert after.rpcs.line_num_coeff == before.rpcs.line_num_coeff
        if how != "rpcs":
            assert after.gcps[1] == before.gcps[1] == rasterio.CRS.from_epsg(4326)
            kept = [(p.row + top, p.col + left, p.x, p.y, p.z) for p in after.gcps[0]]
            assert np.allclose(kept, [(p.row, p.col, p.x, p.y, p.z) for p in before.gcps[0]], rtol=0, atol=1e-12)
            with GCPTransformer(before.gcps[0]) as one, GCPTransformer(after.gcps[0]) as other:
                found = other.xy([row - top for row in y], [column - left for column in x])
                assert np.allclose(found, one.xy(y, x), atol=1e-9)
    with tifffile.TiffFile(target) as file:
        tags = {tag.code: tag.value for tag in file.pages.first.tags}
    if how != "points":
        errors_and_offsets = [1.5, RPCS.get("ERR_RAND", -1), offsets["LINE_OFF"], offsets["SAMP_OFF"], 50.25, 10, 300]
        assert list(tags[50844][:7]) == [float(each) for each in errors_and_offsets], "RPCCoefficientTag"
    if how != "rpcs":
        tied = [value for r, c, x in points for value in (c - left, r - top, 0, x, 50 - r / 1e3, 7.5)]
        assert tags[33922] == pytest.approx(tied), "ModelTiepointTag"
    labels = segmenter.segment(part).labels
    x, y, width, height = window or (0, 0, 156, 82)
    assert np.array_equal(read(target), labels[y : y + height, x : x + width])
    assert ("outlines are in pixels" in report.note) == (how != "rpcs")
    assert list(pyogrio.raw.read(tmp_path / "b.gpkg")[0]["fields"])[2] == ("area_m2" if how == "rpcs" else "pixels")
    if how != "rpcs":
        with pytest.raises(DeployError, match="--bbox: the raster lies on a map by ground control points alone"):
            run(segmenter, source, target, bbox=(0, 0, 1, 1))


@pytest.mark.parametrize(("room", "polygons"), [(5000, None), (50_000, None), (200_000, "gpkg"), (200_000, "geojson")])
def test_where_there_is_no_room_one_line_says_so(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path, room: int, polygons: str | None
) -> None:
    """For a part, for the whole, for polygons, though GDAL says nothing of what it could not write last.  room: bytes a
    file.  What was finished stays for --resume, and nothing else.
    """
    if polygons is not None:
        pytest.importorskip("pyogrio", reason="pyogrio, which writes polygons, is not installed")
    source, target = write(tmp_path / "a.tif", image), tmp_path / "out" / "a.tif"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(DeployError, match=r"^output .*: (GDAL says:|cannot be written)") as caught:
            run(segmenter, source, target, polygons=polygons)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [path.name for path in target.parent.iterdir()] == [".a.tif.parts"]
    run(segmenter, source, target, resume=True, polygons=polygons)
    assert np.array_equal(read(target), segmenter.segment(image).labels)


class _Stopped(Exception):
    pass


def test_a_run_that_was_stopped_goes_on(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same bytes of pixels; not where bundle, input or options are others; from the start without --resume."""
    source, target = write(tmp_path / "a.tif", image), tmp_path / "out" / "a.tif"
    expected = segmenter.segment(image).labels
    put, times = runs.Chunks.put, []

    def stops(self, *args):  # type: ignore[no-untyped-def]
        times.append(1)
        if len(times) == 3:
            raise _Stopped
        put(self, *args)

    monkeypatch.setattr(runs.Chunks, "put", stops)
    with pytest.raises(_Stopped):
        run(segmenter, source, target)
    assert not target.exists()
    monkeypatch.setattr(runs.Chunks, "put", put)
    with pytest.raises(DeployError, match=r"parts: holds parts of a run with another keep_nodata;"):
        run(segmenter, source, target, resume=True, keep_nodata=True)
    times_of_it = source.stat().st_atime_ns, source.stat().st_mtime_ns
    os.utime(source)
    with pytest.raises(DeployError, match=r"parts: holds parts of a run with another files;"):
        run(segmenter, source, target, resume=True)
    os.utime(source, ns=times_of_it)
    report = run(segmenter, source, target, resume=True)
    assert 0 < report.resumed < 1
    assert np.array_equal(read(target), expected)
    assert sorted(path.name for path in target.parent.iterdir()) == ["a.tif"]
    assert run(segmenter, source, target, resume=True).resumed == 1, "a finished one is gone on with"
    assert run(segmenter, source, target).resumed == 0, "and run again where nobody asks for that"


def test_only_one_shard_puts_the_parts_together(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write(tmp_path / "a.tif", image[:200, :300]), tmp_path / "out" / "a.tif"
    finish, others = runs._finish, []

    def meanwhile(*args):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(runs, "_finish", finish)
        others.append(run(segmenter, source, target, shard=(2, 2)))
        finish(*args)

    monkeypatch.setattr(runs, "_finish", meanwhile)
    run(segmenter, source, target, shard=(1, 2))
    assert run(segmenter, source, target, shard=(2, 2)).complete
    assert [other.complete for other in others] == [False]
    assert np.array_equal(read(target), segmenter.segment(image[:200, :300]).labels)


def test_a_shard_without_rows_leaves_nothing_after_the_end(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path
) -> None:  # fmt: skip
    """One part and four shards, which come in any order, and late."""
    source, target = write(tmp_path / "a.tif", image[:200, :300]), tmp_path / "out" / "a.tif"
    found = [run(segmenter, source, target, shard=(index, 4)).complete for index in (2, 4, 1, 3)]
    assert found == [False, True, True, True]
    assert [path.name for path in target.parent.iterdir()] == ["a.tif"]


@pytest.mark.parametrize("polygons", [None, "gpkg"])
def test_a_shard_that_is_run_again_after_the_end_finds_what_is_there(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path, polygons: str | None
) -> None:
    """As a scheduler does: nothing is run, nothing stays beside the results.  Of another run all is done anew."""
    if polygons is not None:
        pytest.importorskip("pyogrio", reason="pyogrio, which writes polygons, is not installed")
    source, target = write(tmp_path / "a.tif", image), tmp_path / "out" / "a.tif"
    options = {"confidence": True, "polygons": polygons}
    *_, whole = [run(segmenter, source, target, shard=(index, 2), **options) for index in (1, 2)]
    before = {path: path.read_bytes() for path in target.parent.iterdir()}
    assert len(before) == 2 + (polygons is not None)
    for index in (1, 2):
        again = run(segmenter, source, target, shard=(index, 2), **options)
        assert (again.complete, again.resumed, again.windows, again.classes) == (True, 1, 0, whole.classes)
    assert {path: path.read_bytes() for path in target.parent.iterdir()} == before
    target.with_suffix(".confidence.tif").write_bytes(before[target.with_suffix(".confidence.tif")][:-9000])
    assert not run(segmenter, source, target, shard=(2, 2), **options).complete, "damaged"
    assert run(segmenter, source, target, shard=(1, 2), **options).complete
    assert {
        path: path.read_bytes() for path in target.parent.iterdir() if path.suffix == ".tif"
    }.items() <= before.items()
    for other in ({"keep_nodata": True}, {"polygons": "geojson"}):
        found = [run(segmenter, source, target, shard=(index, 2), **options | other) for index in (1, 2)]
        assert [(each.complete, each.resumed) for each in found] == [(False, 0), (True, 0)]
        assert all(not path.name.startswith(".") for path in target.parent.iterdir())


def test_a_shard_that_runs_twice_at_once_loses_nothing_to_the_other(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was thought to be dead: while it works the other ends, and all is put together."""
    source, target = write(tmp_path / "a.tif", image), tmp_path / "out" / "a.tif"
    run(segmenter, source, target, shard=(1, 2))
    put = runs.Chunks.put

    def meanwhile(self, *args):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(runs.Chunks, "put", put)
        assert run(segmenter, source, target, shard=(2, 2)).complete
        put(self, *args)

    monkeypatch.setattr(runs.Chunks, "put", meanwhile)
    assert run(segmenter, source, target, shard=(2, 2)).complete
    assert np.array_equal(read(target), segmenter.segment(image).labels)
    assert [path.name for path in target.parent.iterdir()] == ["a.tif"]


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.uint16, (0.0, 10_000.0)), (np.float32, (-1.0, 1.0)), (np.uint16, None)]
)
def test_bands_and_scales(
    segmenter: Segmenter, image: np.ndarray, tmp_path: Path, dtype: type, scale: tuple[float, float] | None
) -> None:
    small = image[:200, :300]
    low, high = scale or (0.0, 65535.0)
    values = (small / 255 * (high - low) + low).astype(dtype)
    stack = np.dstack([np.zeros_like(values[:, :, 0]), values[:, :, 2], values[:, :, 1], values[:, :, 0]])
    source = write(tmp_path / "a.tif", stack)
    run(segmenter, source, tmp_path / "b.tif", bands=(4, 3, 2), scale=scale)
    scaled = np.clip(np.rint((values.astype(np.float64) - low) * 255 / (high - low)), 0, 255).astype(np.uint8)
    assert (read(tmp_path / "b.tif") == segmenter.segment(scaled).labels).mean() > 0.999


def test_polygons_are_what_the_labels_are(segmenter: Segmenter, image: np.ndarray, tmp_path: Path) -> None:
    """Drawn again by rasterio they give the labels; areas are in square metres."""
    pyogrio = pytest.importorskip("pyogrio", reason="pyogrio, which writes polygons, is not installed")
    source = write(tmp_path / "a.tif", image[:300, :400])
    report = run(segmenter, source, tmp_path / "a_labels.tif", polygons="gpkg")
    labels = read(tmp_path / "a_labels.tif")
    meta, _, shapes, fields = pyogrio.raw.read(tmp_path / "a_labels.gpkg")
    assert report.polygons == len(shapes) > 10
    assert list(meta["fields"]) == ["label", "class", "area_m2"]
    names = {segmenter.spec.classes[label] for label in np.unique(labels)}
    assert set(fields[1]) == names
    for label in np.unique(labels):
        area = fields[2][fields[0] == label].sum()
        assert area == pytest.approx((labels == label).sum() * 0.25)
    assert meta["crs"] == "EPSG:32632"
    run(segmenter, source, tmp_path / "again.tif", polygons="geojson")
    meta, _, shapes, fields = pyogrio.raw.read(tmp_path / "again.geojson")
    assert len(shapes) == report.polygons
    assert meta["crs"] == "EPSG:4326"


def test_memory_does_not_grow_with_the_raster(segmenter: Segmenter, tmp_path: Path) -> None:
    """Of a sparse raster of 0.8 gigapixels nothing is run but what is there, and little is held."""
    path = tmp_path / "huge.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=20_000, width=40_000, count=3, dtype="uint8", crs="EPSG:32632",
        transform=PLACE, tiled=True, nodata=0, sparse_ok=True, bigtiff="yes",
    ) as file:  # fmt: skip
        part = np.random.default_rng(0).integers(1, 256, (3, 200, 300), np.uint8)
        file.write(part, window=rasterio.windows.Window(30_000, 15_000, 300, 200))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(segmenter, path, tmp_path / "b.tif", window=(29_900, 14_900, 600, 600))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    labels = read(tmp_path / "b.tif")
    assert (labels != 255).sum() == 200 * 300


MEMORY = """
import sys
from pathlib import Path

import numpy as np
import rasterio
from engines.rasters.gdal_write import write_cog
from rasterio.windows import Window

folder = Path(sys.argv[1])
with rasterio.open(folder / "labels.tif", "w", driver="GTiff", width=100_000, height=2048, count=1, dtype="uint8",
                   nodata=255, tiled=True, blockxsize=512, blockysize=512, compress="deflate", sparse_ok=True,
                   crs="EPSG:32632", transform=rasterio.Affine(0.5, 0, 0, 0, -0.5, 0)) as file:
    file.write(np.ones((512, 512), np.uint8), 1, window=Window(0, 0, 512, 512))
    file.write_colormap(1, {1: (255, 0, 0, 255)})
held = lambda key: int(next(x for x in open("/proc/self/status") if x.startswith(key)).split()[1]) / 1024
before = held("VmRSS")
write_cog(folder / "labels.tif", folder / "cog.tif", labels=True)
print(held("VmHWM") - before)
"""


def test_overviews_of_a_wide_raster_take_little_memory(tmp_path: Path) -> None:
    """With colours GDAL makes them of whole rows: 100000 wide it took 260 MB more."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert float(done.stdout) < 160, "megabytes"
    with rasterio.open(tmp_path / "cog.tif") as file:
        assert file.overviews(1) == [2, 4, 8, 16, 32, 64, 128, 256]
        assert file.colormap(1)[1] == (255, 0, 0, 255)


WHOLE = (
    "import sys; from pathlib import Path; from engines.rasters.gdal_write import write_cog; "
    "write_cog(*map(Path, sys.argv[1:]), True)"
)


def test_overviews_on_the_way_lie_where_they_are_removed(tmp_path: Path) -> None:
    """Beside the parts, not beside the result: a run that is killed would leave them there for good."""
    parts, results = tmp_path / "parts", tmp_path / "results"
    parts.mkdir()
    results.mkdir()
    noise = np.random.default_rng(0).integers(0, 3, (4096, 4096, 1), np.uint8)
    write(parts / "labels.tif", noise, compress=None)
    command = [sys.executable, "-c", WHOLE, str(parts / "labels.tif"), str(results / "a.tif")]
    seen: set[str] = set()
    with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as process:
        while process.poll() is None:
            seen |= {path.name for path in results.iterdir()}
            time.sleep(0.01)
    assert process.returncode == 0
    assert seen == {"a.tif"}
