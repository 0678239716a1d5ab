"""Data sets on disk, label maps, rendered scenes."""
