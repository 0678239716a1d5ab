"""Many images through one device: read ahead of it, finished behind it, in bounded memory."""
