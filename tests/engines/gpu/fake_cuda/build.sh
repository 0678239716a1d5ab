#!/usr/bin/env bash
# build.sh FOLDER: the fake driver, FOLDER/libcuda.so.1 (and libcuda.so, which linkers look for).
# build.sh --toolkit: only print where the CUDA toolkit is.
# Needs a C compiler and the toolkit's headers: below CUDA_HOME, beside nvcc, or in /usr/local/cuda.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
nvcc=$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")
toolkit=
for folder in "${CUDA_HOME:-}" "${nvcc%/bin/nvcc}" /usr/local/cuda; do
    if [ -z "$toolkit" ] && [ -e "$folder/include/cuda.h" ]; then toolkit=$folder; fi
done
[ -n "$toolkit" ] || { echo "no CUDA toolkit with include/cuda.h; set CUDA_HOME" >&2; exit 2; }
if [ "$1" = --toolkit ]; then echo "$toolkit"; exit; fi

mkdir -p "$1"
"${CC:-cc}" -std=c11 -O1 -g -Wall -Wextra -Werror -fPIC -shared -Wl,-soname,libcuda.so.1 -isystem "$toolkit/include" \
    "$here/context.c" "$here/streams.c" "$here/stubs.c" -o "$1/libcuda.so.1.part" -ldl
mv "$1/libcuda.so.1.part" "$1/libcuda.so.1"
ln -sf libcuda.so.1 "$1/libcuda.so"
