"""Several views of each image without leaving the GPU: pixels, windows, logits, and what they agree on."""
