"""NVRTC, NVIDIA's compiler as a library, through ctypes (https://docs.nvidia.com/cuda/nvrtc/)."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.errors import DeployError

# NVRTC has no headers.  These two are all that tile.h includes; size_t and ptrdiff_t are built in.
_HEADERS = {
    "stddef.h": "",
    "stdint.h": (
        "typedef unsigned char uint8_t;\ntypedef unsigned short uint16_t;\ntypedef int int32_t;\n"
        "typedef unsigned int uint32_t;\ntypedef long long int64_t;\ntypedef unsigned long long uint64_t;\n"
    ),
}
_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so")


def find(toolkits: Iterable[Path]) -> Iterator[str]:
    """The libraries of pip's packages, of CUDA toolkits and of the system, in this order, each once."""
    seen = set()
    for path in (*_packaged(), *_in_toolkits(toolkits)):
        if path.resolve() not in seen:
            seen.add(path.resolve())
            yield str(path)
    for name in _NAMES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        yield name


def _packaged() -> Iterator[Path]:
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(folder).glob("*/lib/libnvrtc.so*"), reverse=True)


def _in_toolkits(toolkits: Iterable[Path]) -> Iterator[Path]:
    for toolkit in toolkits:
        yield from sorted(toolkit.glob("lib64/libnvrtc.so*"), reverse=True)


class Compiler:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.nvrtcGetErrorString.restype = ctypes.c_char_p

    @classmethod
    def load(cls, library: str) -> Compiler:
        """library: one that `find` found."""
        beside = sorted(Path(library).parent.glob("libnvrtc-builtins.so*")) if os.sep in library else ()
        try:
            for path in beside:  # which pip's NVRTC asks for by name alone, and finds only if it is loaded
                ctypes.CDLL(str(path))
            return cls(ctypes.CDLL(library))
        except OSError as error:
            raise DeployError(f"kernels: cannot load {library}: {error}; install nvidia-cuda-nvrtc again") from error

    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def architectures(self) -> list[str]:
        """Those that it compiles for, as sm_87."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        return [f"sm_{number}" for number in numbers]

    def cubin(self, source: str, headers: Mapping[str, str], arch: str, strict: bool = False) -> bytes:
        """Compiled without contraction.  headers: text by the name that they are included by.

        strict: a warning is an error.  A compiler newer or older than ours may warn of what works, so only tests ask.
        Raises DeployError with the compiler's words.
        """
        texts = {**_HEADERS, **headers}
        strings = ctypes.c_char_p * len(texts)
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"tile.cu", len(texts),
            strings(*(text.encode() for text in texts.values())), strings(*(name.encode() for name in texts)),
        )  # fmt: skip
        try:
            options = [f"--gpu-architecture={arch}".encode(), b"--fmad=false", b"--std=c++17"]
            status = self._library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * 3)(*options))
            log = " ".join(self._bytes(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").split())
            if status or (strict and log):
                raise DeployError(f"kernels: NVRTC {self.version()} failed for {arch} ({log[-600:]}); report this")
            return self._bytes(program, "CUBIN")
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, content)
        return content.raw

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise DeployError(
                f"kernels: this NVRTC has no {name}; install CUDA 12 or newer, or run: pip install nvidia-cuda-nvrtc"
            ) from error
        status = function(*arguments)
        if status:
            raise DeployError(f"kernels: {name} failed: {self._library.nvrtcGetErrorString(status).decode()}")
