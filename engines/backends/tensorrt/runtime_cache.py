"""What TensorRT-RTX compiles when an engine first runs on a GPU, kept so that the next start need not.

Its engines hold kernels in a form that the GPU's own code is made of at load time, by every process anew unless the
runtime is given a cache (https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest, "Working with Runtime Cache").  The
cache is machine code: it lies in the bundle, under the manifest's sha256, and the SDK refuses that of another release,
GPU or driver.
"""

from __future__ import annotations

from typing import Any


class CompiledAtRunTime:
    """The cache of one engine.  given: b"", or what `found` was in another process.

    TensorRT itself compiles all when it builds, and has no such thing.
    """

    def __init__(self, sdk: Any, given: bytes) -> None:
        self._has = hasattr(sdk, "IRuntimeCache")
        self._given = given
        self._cache: Any = None
        self._settings: Any = None
        self._taken = False

    def context_of(self, engine: Any) -> Any:
        """An execution context, None where the SDK makes none.  The GPU's context must be current.

        All of one engine have one cache, so that for the second nothing is compiled.
        """
        if not self._has:
            return engine.create_execution_context()
        if self._settings is not None:
            return engine.create_execution_context(self._settings)
        self._settings = engine.create_runtime_config()
        self._cache = None if self._settings is None else self._settings.create_runtime_cache()
        if self._cache is None:
            self._settings = None
            return None
        self._taken = bool(self._given) and bool(self._cache.deserialize(self._given))
        if not self._settings.set_runtime_cache(self._cache):
            return None
        return engine.create_execution_context(self._settings)

    def found(self) -> bytes:
        """What has been compiled by now; b"" where all of it was given."""
        if self._cache is None or self._taken:
            return b""
        return bytes(memoryview(self._cache.serialize()))

    def close(self) -> None:
        """After the context, and before the engine."""
        self._cache = None
        self._settings = None
