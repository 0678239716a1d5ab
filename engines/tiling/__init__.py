"""Windows over an image: where they lie, gather and stitch, in C and CUDA."""
