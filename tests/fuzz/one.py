"""One target in this process, under libFuzzer: python -m tests.fuzz.one TARGET CORPUS [libFuzzer's options]."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

from engines.errors import DeployError
from tests.fuzz.targets import TARGETS

SEEN = ["engines", "calib", "pipeline", "PIL"]  # whose branches guide the mutations


def main() -> None:
    target = TARGETS[sys.argv[1]]
    corpus = Path(sys.argv[2])
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    with atheris.instrument_imports(include=SEEN, enable_loader_override=False):
        for index, seed in enumerate(target.seeds(folder)):
            (corpus / f"seed-{index}").write_bytes(seed)
            target.read(seed, folder)  # a sane input is read, and everything that reads is imported here

    def test_one_input(data: bytes) -> None:
        try:
            target.read(data, folder)
        except DeployError as error:
            if "\n" in str(error):
                raise ValueError(f"a message of several lines: {error}") from error

    mutate = target.mutator

    def custom_mutator(data: bytes, limit: int, seed: int) -> bytes:
        assert mutate is not None
        return mutate(data, limit, random.Random(seed), atheris.Mutate)

    options: dict[str, Any] = {} if mutate is None else {"custom_mutator": custom_mutator}
    atheris.Setup([sys.argv[0], *sys.argv[3:], str(corpus)], test_one_input, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
