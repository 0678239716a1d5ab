"""Videos and cameras: frames in, label tracks and overlays out, while the engine works."""
