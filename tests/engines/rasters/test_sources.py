"""Slides, mosaics, Zarr, NetCDF, files behind HTTP: the same pixels have the same labels, whatever holds them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import deploy
from engines.errors import DeployError
from engines.images.inputs import expand
from engines.images.rasters import file_name, is_name
from engines.rasters.gdal import explained
from tests.engines.rasters.maps import COEFFICIENTS, read, write
from tests.engines.rasters.zarrs import write_group, write_image

rasterio = pytest.importorskip("rasterio", reason="rasterio, which reads rasters, is not installed")
tifffile = pytest.importorskip("tifffile", reason="tifffile, which writes slides, is not installed")
HEIGHT, WIDTH = 130, 300


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (HEIGHT // 10, WIDTH // 10, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    return (coarse // 2 + rng.integers(0, 40, (HEIGHT, WIDTH, 3), np.uint8)).astype(np.uint8)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a server that knows ranges shows its files."""
    folder = tmp_path_factory.mktemp("served")
    # In a process of its own: rasterio opens a file with Python's lock held.
    command = [sys.executable, "-m", "tests.engines.rasters.ranges", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as server:
        assert server.stdout is not None
        yield folder, f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.terminate()


def slide(path: Path, image: np.ndarray) -> None:
    """Pages as Aperio writes them: the scan, a thumbnail, a level, label and macro."""
    with tifffile.TiffWriter(path) as file:
        for page, tiled, description in (
            (image, True, "Aperio Image Library v11.2.1\r\n300x130 Q=70|AppMag = 20|MPP = 0.5"),
            (image[::4, ::4], False, ""), (image[::2, ::2], True, ""), (image[:40, :40], False, "label 40x40"),
        ):  # fmt: skip
            options = {"tile": (128, 128)} if tiled else {"rowsperstrip": 16}
            file.write(
                np.ascontiguousarray(page), photometric="rgb", compression="deflate", metadata=None,
                description=description, **options,
            )  # fmt: skip


def microscope(path: Path, image: np.ndarray, axes: str, **options: object) -> None:
    """An OME-TIFF with a level in a SubIFD."""
    data, half = (np.ascontiguousarray(each) for each in (image, image[::2, ::2]))
    if axes[-1] == "X":
        data, half = (np.ascontiguousarray(np.moveaxis(each, 2, 0)) for each in (data, half))
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(data, metadata={"axes": axes}, tile=(128, 128), subifds=1, **options)
        file.write(half, tile=(128, 128), subfiletype=1, **options)


def zarr(folder: Path, image: np.ndarray) -> None:
    """OME-Zarr of two levels."""
    write_image(folder, [np.moveaxis(image, 2, 0), np.moveaxis(image[::2, ::2], 2, 0)], "cyx")


def mosaic(path: Path, image: np.ndarray) -> None:
    """A VRT of two GeoTIFFs, side by side."""
    bands = ""
    for band in (1, 2, 3):
        bands += f'<VRTRasterBand dataType="Byte" band="{band}">'
        for name, left, width in (("west", 0, 170), ("east", 170, WIDTH - 170)):
            write(path.with_name(f"{name}.tif"), image[:, left : left + width])
            size = f'xSize="{width}" ySize="{HEIGHT}"'
            bands += (
                f'<SimpleSource><SourceFilename relativeToVRT="1">{name}.tif</SourceFilename>'
                f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" {size}/>'
                f'<DstRect xOff="{left}" yOff="0" {size}/></SimpleSource>'
            )
        bands += "</VRTRasterBand>"
    path.write_text(f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}">{bands}</VRTDataset>')


def test_the_same_pixels_have_the_same_labels(
    tiny_bundle: Path, image: np.ndarray, served: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In whatever they lie: the finest level, not the label on the glass, and bit for bit."""
    from rasterio.shutil import copy

    folder, address = served
    plain = write(tmp_path / "plain.tif", image)
    slide(tmp_path / "slide.svs", image)
    microscope(tmp_path / "pixels.ome.tif", image, "YXS", photometric="rgb")
    microscope(tmp_path / "planes.ome.tif", image, "SYX", photometric="rgb", planarconfig="separate")
    mosaic(tmp_path / "mosaic.vrt", image)
    zarr(tmp_path / "hand.zarr", image)
    zarr(tmp_path / "two.zarr" / "a", image)
    zarr(tmp_path / "two.zarr" / "b", image)
    write_group(tmp_path / "two.zarr", {})
    write(tmp_path / "j.jp2", image, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES", tiled=None, compress=None)
    write(tmp_path / "tiles.gpkg", image, driver="GPKG", TILE_FORMAT="PNG", tiled=None, compress=None)
    write(tmp_path / "imagine.img", image, driver="HFA", tiled=None, compress=None)
    for version in (2, 3):
        copy(plain, tmp_path / f"v{version}.zarr", driver="Zarr", FORMAT=f"ZARR_V{version}")
    copy(plain, tmp_path / "cube.nc", driver="netCDF")
    copy(plain, folder / "cog.tif", driver="COG")
    files = ("plain.tif", "slide.svs", "pixels.ome.tif", "planes.ome.tif", "mosaic.vrt", "j.jp2", "tiles.gpkg",
             "imagine.img", "v2.zarr", "v3.zarr", "hand.zarr", "two.zarr", "cube.nc")  # fmt: skip
    inputs = [str(tmp_path / name) for name in files]
    inputs += [f'ZARR:"{tmp_path}/hand.zarr":/0', f"GTIFF_DIR:3:{tmp_path}/slide.svs"]
    inputs += [f"{address}/cog.tif?key=a", f"/vsicurl/{address}/none.tif"]
    out = tmp_path / "out"
    assert deploy.main(["run", str(tiny_bundle), *inputs, "-o", str(out), "--max-pixels", "5000"]) == 2
    said = capsys.readouterr().out
    expected = read(out / "plain.tif")
    assert len(np.unique(expected)) > 2
    same = ["cog", "hand", "hand_zarr_0", "imagine", "j", "mosaic", "pixels.ome", "plain", "planes.ome", "slide",
            "tiles", "v2", "v3"]  # fmt: skip
    assert sorted(path.stem for path in out.iterdir()) == sorted([*same, "3_slide_svs"])
    for name in same:
        assert np.array_equal(read(out / f"{name}.tif"), expected), name
    assert read(out / "3_slide_svs.tif").shape == (HEIGHT // 2, WIDTH // 2)
    assert "cube.nc: holds 3 rasters, expected one; give one of them by its name: netcdf:" in said
    assert "two.zarr: holds 4 rasters" in said
    assert "none.tif: GDAL says: HTTP response code: 404" in said
    with rasterio.open(out / "mosaic.tif") as file:
        assert file.crs is None
    with rasterio.open(out / "imagine.tif") as file:
        assert file.transform == rasterio.Affine(*COEFFICIENTS)


def test_slides_and_zarrs_are_found_in_folders(
    tiny_bundle: Path, image: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And none of the pages is taken for the whole where channels lie in pages."""
    deep = tmp_path / "in" / "deep"
    deep.mkdir(parents=True)
    slide(deep / "a.svs", image)
    zarr(deep / "b.zarr", image)
    microscope(deep / "c.ome.tif", image, "CYX", photometric="minisblack")
    out = tmp_path / "out"
    words = ["run", str(tiny_bundle), str(tmp_path / "in"), "--recursive", "-o", str(out), "--max-pixels", "5000"]
    assert deploy.main(words) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in (out / "deep").iterdir()) == ["a.tif", "b.tif", "c.ome.tif"]
    assert "c.ome.tif holds 3 pages of this size, of which the first is read" in said
    assert "left out" not in said


def test_a_named_raster_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file is that has by chance the name which is derived from it."""
    monkeypatch.chdir(tmp_path)
    Path("a.tif").write_bytes(b"")
    Path("clip.mp4").write_bytes(b"")
    found = expand(["https://host/a.tif", "/vsizip/x.zip/clip.mp4"], videos=True)
    assert [each.is_video for each in found] == [False, False]


def test_an_output_folder_that_went_away_is_said(tmp_path: Path) -> None:
    said = r"^output .*a\.tif: GDAL says: .*; its folder is gone$"
    with pytest.raises(DeployError, match=said), explained(tmp_path / "gone" / "a.tif", "output"):
        raise OSError("it cannot be written")


GDAL = r"""
import ctypes, json, re
import rasterio

(path,) = {line.split()[-1] for line in open("/proc/self/maps") if "/libgdal" in line}
gdal = ctypes.CDLL(path)
gdal.GDALAllRegister()
gdal.GDALIdentifyDriverEx.restype = gdal.GDALGetDriver.restype = ctypes.c_void_p
gdal.GDALIdentifyDriverEx.argtypes = ctypes.c_char_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p
gdal.GDALGetMetadataItem.restype = ctypes.c_char_p
gdal.GDALGetMetadataItem.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p
gdal.VSIGetFileSystemsPrefixes.restype = ctypes.POINTER(ctypes.c_char_p)
words = set(re.findall(rb'\0([A-Za-z]\w+):(?=["%\0])', open(path, "rb").read()))  # whatever may be one
forms = (b'%s:"/no/file":b', b"%s:1:/no/file", b"%s:/no/file:b")
found = {word for word in words for form in forms if gdal.GDALIdentifyDriverEx(form % word, 2, None, None)}  # rasters
for index in range(gdal.GDALGetDriverCount()):
    says = lambda what: gdal.GDALGetMetadataItem(gdal.GDALGetDriver(index), what, None)
    found |= {says(b"DMD_CONNECTION_PREFIX")} if says(b"DCAP_RASTER") else set()
prefixes, systems = gdal.VSIGetFileSystemsPrefixes(), []
while prefixes[len(systems)]:
    systems.append(prefixes[len(systems)])
print(json.dumps([sorted(each.decode().rstrip(":") for each in found if each), [each.decode() for each in systems]]))
"""


def test_every_prefix_of_gdals_rasters_is_known() -> None:
    """Asked of the GDAL in rasterio's wheel: which words a driver takes before a file, and what it mounts."""
    done = subprocess.run([sys.executable, "-c", GDAL], capture_output=True, text=True, check=False)
    if "not enough values" in done.stderr:
        pytest.skip("rasterio has no GDAL of its own beside it")
    prefixes, systems = json.loads(done.stdout)
    assert {"HDF5", "NETCDF", "SENTINEL2_L2A", "WMTS", "ZARR"} <= set(prefixes)
    assert [prefix for prefix in prefixes if not is_name(f"{prefix}:a")] == []
    assert "/vsicurl/" in systems
    assert [system for system in systems if not is_name(f"{system}a")] == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('NETCDF:"/data/a b.nc":sea_ice', "a_b_nc_sea_ice"),
        ("SENTINEL2_L2A:/d/MTD_MSIL2A.xml:10m:EPSG_32632", "MTD_MSIL2A_xml_10m_EPSG_32632"),
        ("https://host/dir/x.tif?sig=a:b", "x.tif"),
        ("/vsizip/a.zip/b/c.tif", "c.tif"),
        ("https://host/film.mp4", None),
        ("rtsp://camera/1", None),
        ("gst:videotestsrc ! appsink", None),
        ("a.tif", None),
        ("C:/a.tif", None),
        ("scene12:30.png", None),
        ("HDF4_SDS:MODIS:/d/a.hdf:1", "MODIS_a_hdf_1"),
        ("GTIFF_DIR:2:/d/a.tif", "2_a_tif"),
    ],
)
def test_names_of_gdal(text: str, name: str | None) -> None:
    assert is_name(text) == (name is not None)
    if name is not None:
        assert file_name(text) == name
