"""Write what the peers load: the weights as a Hugging Face folder, and the plain graph as ONNX.

python -m benchmarks.peers.prepare MODEL WORK
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.peers.models import MODELS, save_hub, torch_module


def main() -> None:
    model, work = MODELS[sys.argv[1]], Path(sys.argv[2])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    save_hub(model, work)
    example = torch.zeros(1, 3, model.window, model.window)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(torch_module(model, work), (example,), dynamo=True, verbose=False)
    assert program is not None
    program.save(work / "plain.onnx")


if __name__ == "__main__":
    main()
