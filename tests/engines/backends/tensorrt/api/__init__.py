"""The Python API of TensorRT releases as their own bindings show it, and fakes that have exactly that."""
