"""The ONNX graph: export, rewrites, batches, what it costs."""
