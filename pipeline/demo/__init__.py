"""The demo model: SegFormer-B0 trained on rendered scenes (`train`), and two of those scenes as photographs."""
