"""TensorRT and TensorRT-RTX: one builder and one runtime over either SDK."""
