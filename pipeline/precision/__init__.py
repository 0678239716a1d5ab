"""Precision that lives in the ONNX graph: plans, FP16/BF16 with FP32 islands, INT8 with Q/DQ, and their proof.

A plan says for every node what it computes in and why; a lowering writes that into the graph; `verify` runs the
lowered graph with every tensor really rounded to its type.
"""
