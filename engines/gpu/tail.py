"""A decoder's tail on a GPU: the launch of its kernel, and a session that ends with it."""

from __future__ import annotations

from math import prod
from types import TracebackType

from engines.contract import DeviceSession, Float32, Tensor, packed
from engines.errors import DeployError
from engines.gpu.context import CudaGpu
from engines.gpu.host_copies import DTYPES, HostRun
from engines.gpu.kernels import MAX_WINDOWS, SUFFIX, Launch
from engines.gpu.memory import CudaMemory
from engines.tiling.tail import Tail, TailShape, launch_of

_GRID_Y = 65535


def tail(shape: TailShape, dtype: str, maps: int, weights: list[int], logits: int, windows: int) -> Launch:
    """Logits (windows, K, h, w) float32 of an engine's maps, the same bits as `engines.tiling.tail.Tail.logits`.

    maps: address of the packed maps of `dtype`, float32 or float16.  weights: of `Tail.weights`, in their order.
    Raises DeployError when a value is out of range.
    """
    if dtype not in SUFFIX:
        raise DeployError(f"tail: got maps in {dtype} on the GPU, expected {' or '.join(SUFFIX)}; build it again")
    if not 1 <= windows <= MAX_WINDOWS or shape.height > _GRID_Y:
        most = f"{MAX_WINDOWS} of {_GRID_Y}"
        raise DeployError(f"tail: got {windows} windows of {shape.height} rows, expected 1 to {most}")
    if min(maps, logits, *weights) <= 0 or any(address % 16 for address in (maps, logits, *weights)):
        raise DeployError(f"tail: got addresses {maps}, {weights} and {logits}, expected memory of the GPU, aligned")
    itemsize = 4 if dtype == "float32" else 2
    offsets, _ = packed([windows * prod(size) for size in shape.outputs])
    argument = launch_of(shape, [maps + itemsize * offset for offset in offsets], weights, logits, windows)[0]
    block = shape.block
    grid = (-(-shape.width // block.pixels), shape.height, windows)
    kernel = f"tail_to_{block.classes}_{SUFFIX[dtype]}"
    return Launch(kernel, grid=grid, block=(block.threads, 1, 1), argument=argument, shared=shape.shared)


class GpuTail:
    """An engine that ends in maps, with its tail on the same GPU: a DeviceSession whose output is logits.

    cubin: the kernels for this GPU.  Close it before the GPU and the engine.  Raises DeployError where the engine's
    maps are not the tail's.
    """

    def __init__(self, gpu: CudaGpu, engine: DeviceSession, tail: Tail, cubin: bytes) -> None:
        self._gpu, self._engine, self._tail = gpu, engine, tail
        self.input, shape, maps = engine.input, tail.shape, engine.output
        windows = self.input.shape[0]
        _, total = packed([windows * prod(size) for size in shape.outputs])
        if maps.shape != (total,) or maps.dtype not in DTYPES:
            raise DeployError(
                f"engine: got output {maps.shape} {maps.dtype}, expected the maps ({total},) that its tail takes; "
                "build it again"
            )
        self.output = Tensor("logits", (windows, shape.classes, shape.height, shape.width), "fp32")
        self._held: list[CudaMemory] = []
        self._cubin, self._host = cubin, HostRun(gpu, self)
        self._kernels = gpu.load(cubin)
        try:
            self._maps = self._room(total * DTYPES[maps.dtype].itemsize)
            self._weights = [self._uploaded(array) for array in tail.weights]
        except BaseException:
            self.close()
            raise

    @property
    def capturable(self) -> bool:
        return self._engine.capturable

    @property
    def runtime_cache(self) -> bytes:
        return self._engine.runtime_cache

    def enqueue(self, source: int, target: int, stream: int) -> None:
        self._engine.enqueue(source, self._maps, stream)
        dtype = DTYPES[self._engine.output.dtype].name
        windows = self.input.shape[0]
        launch = tail(
            self._tail.shape, dtype, self._maps, weights=self._weights, logits=target, windows=windows
        )  # fmt: skip
        self._gpu.launch(self._kernels, launch, self._gpu.stream_of(stream))

    def another(self) -> GpuTail:
        """With maps and weights of its own: the weights of a tail are a few hundred kilobytes."""
        return _Beside(self._gpu, self._engine.another(), self._tail, self._cubin)

    def run(self, windows: Float32) -> Float32:
        return self._host.run(windows)

    def close(self) -> None:
        """Free everything."""
        self._host.close()
        while self._held:
            self._held.pop().free()
        self._kernels.free()

    def __enter__(self) -> GpuTail:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _room(self, size: int) -> int:
        memory = self._gpu.allocate(max(size, 1))
        self._held.append(memory)
        return memory.address

    def _uploaded(self, array: Float32) -> int:
        address = self._room(array.nbytes)
        if array.size:
            self._gpu.upload(address, array)
        return address


class _Beside(GpuTail):
    """Has its engine's context to itself, and closes it."""

    def __init__(self, gpu: CudaGpu, engine: DeviceSession, tail: Tail, cubin: bytes) -> None:
        try:
            super().__init__(gpu, engine, tail, cubin)
        except BaseException:
            engine.close()
            raise

    def close(self) -> None:
        super().close()
        self._engine.close()
