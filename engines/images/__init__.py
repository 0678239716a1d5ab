"""Images in, masks and overlays out."""

from engines.images.read import read_image

__all__ = ["read_image"]
