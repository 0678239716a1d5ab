"""A bundle behind a server: the repository that NVIDIA's Triton serves, and what runs inside of it."""
