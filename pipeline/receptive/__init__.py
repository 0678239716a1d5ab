"""How far a network sees: effective receptive fields by gradient, theoretical ones by the graph."""
