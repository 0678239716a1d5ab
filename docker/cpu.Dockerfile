# edgeseg on a CPU, x86-64 or ARM64: make image, or docker build -f docker/cpu.Dockerfile -t edgeseg .
ARG PYTHON=3.11-slim

FROM python:${PYTHON} AS built
# Debian's archive keeps no older versions that could be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m venv --without-pip /opt/edgeseg \
    && python -m pip --python /opt/edgeseg/bin/python install --no-cache-dir -c constraints.txt '.[cpu]'

FROM python:${PYTHON}
COPY --from=built /opt/edgeseg /opt/edgeseg
RUN useradd --no-create-home --uid 10001 edgeseg
# Whoever runs it, nothing is written at home, and OpenVINO's telemetry finds no place for its consent: it stays off.
ENV HOME=/nonexistent
USER 10001
WORKDIR /work
ENTRYPOINT ["/opt/edgeseg/bin/edgeseg"]
CMD ["--help"]
