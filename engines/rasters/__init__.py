"""Rasters of any size, in and out by windows: GeoTIFFs, and what else GDAL reads."""
