"""Asks a Triton server, in the environment that has tritonclient; what it says comes back as a file of NumPy's.

    python client.py http|grpc ADDRESS MODEL OUT.npz REQUEST...

REQUEST is INPUTS=FILE or INPUTS=FILE@OUTPUTS: INPUTS `image` (any file) or `pixels` (.npy with the batch in front),
OUTPUTS names with commas between them.  All are sent at once, each by a client of its own.  OUT.npz holds for the I-th
request its outputs as I.NAME, or its error as I.error.
"""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


def _input(module: Any, name: str, text: str) -> Any:
    if name == "image":
        files = [Path(each).read_bytes() for each in text.split("+")]
        values = np.array(files, np.object_).reshape(-1, 1)
    else:
        values = np.load(text)
    tensor = module.InferInput(name, values.shape, "BYTES" if name == "image" else "UINT8")
    tensor.set_data_from_numpy(values)
    return tensor


def ask(module: Any, address: str, model: str, request: str) -> dict[str, Any]:
    """The outputs by name, or {"error": its text}."""
    inputs, _, outputs = request.partition("@")
    given = [_input(module, *each.split("=", 1)) for each in inputs.split(",") if each]
    wanted = [module.InferRequestedOutput(name) for name in outputs.split(",")] if outputs else None
    with module.InferenceServerClient(address) as client:
        try:
            result = client.infer(model, given, outputs=wanted)
        except importlib.import_module("tritonclient.utils").InferenceServerException as error:
            return {"error": np.array(error.message())}
    found = {name: result.as_numpy(name) for name in ("labels", "confidence")}
    return {name: values for name, values in found.items() if values is not None}


def main() -> None:
    protocol, address, model, out, *requests = sys.argv[1:]
    module = importlib.import_module(f"tritonclient.{protocol}")
    with ThreadPoolExecutor(len(requests)) as threads:
        answers = list(threads.map(lambda request: ask(module, address, model, request), requests))
    np.savez(out, **{f"{index}.{name}": each[name] for index, each in enumerate(answers) for name in each})


if __name__ == "__main__":
    main()
