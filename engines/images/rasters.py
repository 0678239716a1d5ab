"""Which inputs are rasters, whatever lies in them: by their names, without opening them."""

from __future__ import annotations

import glob
import importlib.util
import re
from pathlib import Path
from urllib.parse import urlsplit

SUFFIXES = frozenset({".svs", ".img", ".zarr"})  # taken in folders, beside those that may be pictures, too
_ADDRESSES = frozenset({".tif", ".tiff", ".jp2", ".vrt"})  # what GDAL reads over HTTP by parts; others are videos
_ZARR = ("zarr.json", ".zarray", ".zgroup")  # one of them lies in each group and array, of format 3 or 2
_PART = re.compile(  # NETCDF:"a.nc":band, as GDAL names a part of a file, or what else is none; a test asks it for more
    r"(?:NETCDF|HDF[45]|HDF4_\w+|GTIFF_(?:DIR|RAW)|SENTINEL[12]_\w+|GPKG|ZARR|NITF_IM|PDF|PDF_IMAGE|BAG|S10[24]|S111|TILEDB"
    r"|RADARSAT_2_CALIB|DERIVED_SUBDATASET|RASTERLITE2?|STAC(?:TA|IT)|WMS|WMTS|WCS|OGCAPI|EEDAI|PG|MEM|GEORASTER"
    r"|AGS|IIP|JPEG|NTV2|PDS4|SNAP_TIFF|WCS_SDS|L1BGCPS\w*|L1B_\w+|RCM_CALIB"
    r"|NITF_TOC_ENTRY|ECRG_TOC_ENTRY|JPEG_SUBFILE|ADRG|CAD|DIMAP|KTX2|BASISU|DAAS|PLMOSAIC|NGW"
    r"|HEIF|AVIF|GTI|IIIF):(?!//)",
    re.IGNORECASE,
)


def readable() -> bool:
    """Whether rasterio, which reads them, is installed."""
    return importlib.util.find_spec("rasterio") is not None


def is_name(text: str) -> bool:
    """Whether an INPUT names no file, but what GDAL knows by a name: part of a file, an address, one of its /vsi…"""
    if text.lower().startswith(("http://", "https://")):
        return Path(urlsplit(text).path).suffix.lower() in _ADDRESSES
    if text.startswith("/vsi"):
        return True
    return bool(_PART.match(text)) and not text.startswith("gst:") and not Path(text).exists() and not glob.glob(text)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a group or an array of Zarr."""
    return path.is_dir() and any((path / name).is_file() for name in _ZARR)


def file_name(text: str) -> str:
    """Of what is written for a name: ``NETCDF:"/data/a.nc":band`` is ``a_nc_band``, an address what it ends with."""
    if "://" in text or text.startswith("/vsi"):
        return Path(urlsplit(text).path).name or "raster"
    parts = [Path(part).name for part in re.split('[:"]', text)[1:]]
    return re.sub(r"[^A-Za-z0-9-]+", "_", "_".join(filter(None, parts))).strip("_") or "raster"
