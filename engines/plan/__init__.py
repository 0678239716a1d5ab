"""What a bundle will cost on an image of some size, before it is run: windows, memory, time."""
