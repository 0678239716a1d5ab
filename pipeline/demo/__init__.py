"""The demo model: SegFormer-B0 trained on rendered scenes (`train`), and two of those scenes as photographs."""

from pathlib import Path

IMAGES = Path(__file__).parent / "images"
