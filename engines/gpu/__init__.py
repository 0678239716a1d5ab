"""An NVIDIA GPU through pycuda: its context, our kernels, recorded frames."""
