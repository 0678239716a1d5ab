"""That an engine does what the checkpoint did: golden images, gates, rebuilds."""
