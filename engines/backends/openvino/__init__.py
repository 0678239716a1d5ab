"""OpenVINO on the CPU, and what a graph needs so that it computes in the types that the graph says."""
