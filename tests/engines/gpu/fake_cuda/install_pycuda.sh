#!/usr/bin/env bash
# install_pycuda.sh PYTHON [SDIST]: real pycuda, built without a GPU, into PYTHON's environment.  About a minute.
# The fake driver stands in for libcuda when linking; what is built runs on a real one just as well.
# Needs a C++ compiler and the CUDA toolkit's headers.  SDIST: pycuda's archive, where there is no network; then PYTHON
# needs numpy and setuptools 70.1 or later.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$1
version=2026.1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

toolkit=$(bash "$here/build.sh" --toolkit)
bash "$here/build.sh" "$work/driver"
if [ -n "${2:-}" ]; then
    cp "$2" "$work/"
else
    "$python" -m pip download --quiet --no-deps --no-binary pycuda -d "$work" "pycuda==$version"
fi
tar -xzf "$work"/pycuda-*.tar.gz -C "$work"
cat > "$work/pycuda-$version/siteconf.py" <<CONFIG
CUDA_ROOT = "$toolkit"
CUDA_INC_DIR = ["$toolkit/include"]
CUDADRV_LIB_DIR = ["$work/driver"]
CUDA_ENABLE_CURAND = False
CXXFLAGS = ["-w"]
CONFIG
# Unoptimised: it is a thin layer, and most of it is boost's templates.
CFLAGS="-O0 -g0" "$python" -m pip install --quiet --no-deps --no-cache-dir ${2:+--no-build-isolation} "$work/pycuda-$version"
