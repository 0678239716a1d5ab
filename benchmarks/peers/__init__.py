"""edgeseg beside its peers: the same weights, images, windows and threads, run in turns.  See `__main__`."""
