"""The demo model: SegFormer-B0 trained on rendered scenes (`train`), and two of those scenes as photographs."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
