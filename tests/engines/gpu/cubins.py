"""The kernels' cubins: each is compiled once for all tests that look at it, several at a time."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from engines.gpu import compile as compiling
from engines.machine.limits import cores

SM = tuple[int, int]


@dataclass(frozen=True)
class Compiled:
    """said: by ptxas, of each kernel's registers and stack."""

    cubin: bytes
    said: str


class Cubins:
    """wanted: those that are compiled now; others are when they are asked for.  Warnings are errors."""

    def __init__(self, wanted: Iterable[SM], folder: Path) -> None:
        self._folder, self._nvccs = folder, compiling.find_nvccs()
        wanted = list(wanted) if self._nvccs else []
        with ThreadPoolExecutor(cores()) as pool:  # ended before any test begins: nvcc leaves files where tests look
            self._made = dict(zip(wanted, pool.map(self._compiled, wanted), strict=True))

    def __call__(self, sm: SM) -> Compiled:
        if not self._nvccs:
            pytest.skip("nvcc is not installed")
        if sm not in self._made:
            self._made[sm] = self._compiled(sm)
        return self._made[sm]

    def _compiled(self, sm: SM) -> Compiled:
        """With our own words to nvcc, and two more that only make ptxas talk."""
        nvcc, arch = self._nvccs[0], f"sm_{sm[0]}{sm[1]}"
        said, talking = self._folder / f"{arch}.txt", self._folder / arch
        talking.write_text(
            f'#!/bin/sh\ncase $1 in --*) exec {nvcc} "$@";; esac\n'
            f'{nvcc} "$@" -Xptxas -v 2>{said}\ncode=$?\ncat {said} >&2\nexit $code\n'
        )
        talking.chmod(0o755)
        return Compiled(compiling._by_nvcc(talking, arch, strict=True), said.read_text())
