"""PyTorch through torch.compile on an NVIDIA GPU: the faster of the two baselines there, see torch_cuda_backend.py."""

from __future__ import annotations

from engines.backends.torch_gpu import TorchCudaBackend

backend = TorchCudaBackend("torch_compile", compiled=True)
