# edgeseg on an NVIDIA GPU, on a base that brings CUDA and TensorRT with its Python module:
#   a Jetson      docker build -f docker/gpu.Dockerfile -t edgeseg:gpu .
#   elsewhere     add --build-arg BASE=nvcr.io/nvidia/tensorrt:25.10-py3
# Built on a stand-in of its base alone: docs/limits.md.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0

FROM ${BASE} AS built
# The base's archive keeps no older versions that could be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/local/cuda/bin:$PATH
WORKDIR /source
COPY . .
# With the base's packages, of which TensorRT is one.  pycuda is compiled here.
RUN python3 -m venv --system-site-packages /opt/edgeseg \
    && /opt/edgeseg/bin/python -m pip install --no-cache-dir . 'pycuda>=2025.1.2'

FROM ${BASE}
COPY --from=built /opt/edgeseg /opt/edgeseg
# The video group owns the GPU's devices on a Jetson.
RUN useradd --no-create-home --uid 10001 --groups video edgeseg
USER 10001
WORKDIR /work
ENTRYPOINT ["/opt/edgeseg/bin/edgeseg"]
CMD ["--help"]
