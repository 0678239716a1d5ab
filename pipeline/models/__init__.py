"""The networks, written from their papers: SegFormer, ViT, SETR."""
