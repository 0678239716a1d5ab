#!/usr/bin/env bash
# install_triton.sh PYTHON DIR: NVIDIA's tritonserver, without a GPU, in an environment of its own at DIR.  15 seconds.
# DIR/serve starts it with the arguments that it is given; DIR/bin/python has tritonclient.
# The server comes in the wheel of PyTriton, of which nothing else is used.  Its Python backend needs NumPy 1.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$1
mkdir -p "$2"
target=$(cd "$2" && pwd)
# Compiled engines are tied to the SDK's release, so that it is the one that the tests build with.
pins=$(grep -E '^(openvino|pillow|tqdm)==' "$here/../../../constraints.txt")

"$python" -m venv "$target"
pip=("$target/bin/python" -m pip install --quiet --disable-pip-version-check)
# shellcheck disable=SC2086  # words, one a package
"${pip[@]}" 'numpy==1.26.4' 'tritonclient[http,grpc]==2.73.0' $pins
"${pip[@]}" --no-deps 'nvidia-pytriton==0.7.0'
packages=$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
libraries=$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
version=$("$target/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
triton=$packages/pytriton/tritonserver
cp "$triton/python_backend_stubs/$version/triton_python_backend_stub" "$triton/backends/python/"
chmod +x "$triton/bin/tritonserver" "$triton/backends/python/triton_python_backend_stub"
path="$packages/nvidia_pytriton.libs:$libraries"
for binary in "$triton/bin/tritonserver" "$triton/backends/python/triton_python_backend_stub"; do
    if LD_LIBRARY_PATH="$path" ldd "$binary" | grep 'not found' >&2; then
        echo "tritonserver: lacks the above; take a python that was built with --enable-shared, or install libpython3" >&2
        exit 2
    fi
done
cat > "$target/serve" <<SERVE
#!/bin/sh
# The stub takes the packages of the first python on PATH.
export LD_LIBRARY_PATH="$path" PATH="$target/bin:\$PATH"
exec "$triton/bin/tritonserver" --backend-directory "$triton/backends" "\$@"
SERVE
chmod +x "$target/serve"
