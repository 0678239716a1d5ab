"""Time, energy and memory of a bundle, in a process of its own."""
