"""What a compiled network costs on a GPU before any GPU has run it: its kernels, the bytes they move, a lower bound."""
