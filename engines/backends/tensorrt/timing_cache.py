"""TensorRT's timing cache between builds: what it measured of each kernel, so that the next build need not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from engines.backends.tensorrt.engine_file import digest
from engines.contract import Log
from engines.errors import DeployError
from engines.files import replacing
from engines.gpu.info import Fingerprint

_MAGIC = b"edgeseg timing cache 1\n"


def default_path(output: Path, sdk: str, device: str) -> Path:
    """Beside the bundle `output`, so that it outlives it; named by SDK and GPU, so that a shared folder holds many."""
    gpu = Fingerprint.parse(device)
    where = device if gpu is None else f"sm{gpu.sm[0]}{gpu.sm[1]} {gpu.model}"
    return output.absolute().parent / f"{re.sub(r'[^A-Za-z0-9.]+', '-', f'{sdk} {where}').strip('-')}.timing-cache"


class TimingCache:
    """The file at `path`, for builds with `sdk` on `device`: measurements of another version or GPU are worthless."""

    def __init__(self, path: Path, sdk: str, device: str, log: Log) -> None:
        self._path, self._log = path, log
        gpu = Fingerprint.parse(device)
        self._owner = [sdk, device if gpu is None else f"sm_{gpu.sm[0]}{gpu.sm[1]} {gpu.model}"]
        self._cache: Any = None  # must outlive the build

    def attach(self, settings: Any) -> None:
        """Give `settings`, an IBuilderConfig, what the file holds.  A file that does not fit is reported, and replaced
        by `store`.
        """
        data = self._read()
        if data and not self._set(settings, data):
            self._log("timing cache", f"{self._path}: TensorRT does not take it; a new one replaces it")
            data = b""
        if not data and not self._set(settings, b""):
            self._log("timing cache", f"{self._path}: TensorRT makes none; this build keeps no measurements")

    def store(self, settings: Any) -> None:
        """Write what TensorRT holds after a build.  A disk that is full costs the cache, not the engine."""
        cache = settings.get_timing_cache()
        if cache is None:
            return
        data = bytes(memoryview(cache.serialize()))
        head = json.dumps({"owner": self._owner, "sha256": digest(data)}).encode()
        try:
            with replacing(self._path, "timing cache") as file:
                file.write(_MAGIC + head + b"\n" + data)
        except DeployError as error:
            self._log("timing cache", f"not kept: {error}")
        else:
            self._log("timing cache", f"{self._path}, {len(data) / 1e3:.0f} kB")

    def _set(self, settings: Any, data: bytes) -> bool:
        try:
            self._cache = settings.create_timing_cache(data)
        except (RuntimeError, TypeError):  # how pybind11 answers where the library returns nothing
            return False
        return self._cache is not None and bool(settings.set_timing_cache(self._cache, False))

    def _read(self) -> bytes:
        """What the file holds, b"" where it is new, damaged, or another GPU's."""
        try:
            blob = self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise DeployError(f"timing cache {self._path}: cannot be read: {error.strerror or error}") from error
        head, _, data = blob[len(_MAGIC) :].partition(b"\n")
        try:
            kept = json.loads(head) if blob.startswith(_MAGIC) else {}
        except ValueError:
            kept = None
        kept = kept if isinstance(kept, dict) else {}
        if kept.get("sha256") != digest(data):
            self._log("timing cache", f"{self._path}: damaged or of another program; a new one replaces it")
            return b""
        if kept.get("owner") != self._owner:
            self._log("timing cache", f"{self._path}: of {' on '.join(map(str, kept['owner']))}; a new one replaces it")
            return b""
        return data
