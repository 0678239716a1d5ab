"""Which pixels can reach a unit of a map at all, by the graph alone, and so over which pixels its output lies."""
