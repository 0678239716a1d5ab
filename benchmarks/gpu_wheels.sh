#!/usr/bin/env bash
# Everything that benchmarks/gpu_check.sh installs, fetched into a folder to take to a machine without a network.
#
#     benchmarks/gpu_wheels.sh FOLDER [--small] [--python 3.12] [--no-rtx]
#
# For Linux on x86-64 and CPython of the given version (the GPU machine's: 3.11 or newer for the versions in
# constraints.txt), with glibc 2.28 or newer.  pycuda comes as source and is compiled there; torch is not fetched, since
# it has to fit the driver.  --small fetches only what a machine with torch, transformers, onnx, onnxruntime and
# onnxscript lacks; --no-rtx leaves out TensorRT-RTX, which is most of the bytes.
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }

folder="" small=0 python=3.12 rtx=1
while (($#)); do
  case $1 in
    --small) small=1 ;;
    --no-rtx) rtx=0 ;;
    --python) python=${2:?--python needs a version}; shift ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "gpu_wheels: got $1, expected --small, --no-rtx or --python" >&2; exit 2 ;;
    *) folder=$1 ;;
  esac
  shift
done
[[ -n $folder ]] || { usage >&2; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$folder"
pip=(python3 -m pip download --quiet --dest "$folder" --constraint "$root/constraints.txt")
wheels=(--only-binary=:all: --implementation cp --python-version "$python")
for glibc in 2_28 2_27 2_26 2_24 2_17 2_12 2_5; do wheels+=(--platform "manylinux_${glibc}_x86_64"); done
for tag in manylinux2014 manylinux2010 manylinux1 linux; do wheels+=(--platform "${tag}_x86_64"); done

# pycuda's source and what it needs; setuptools builds it and our C core.
"${pip[@]}" --no-deps --no-binary pycuda pycuda==2026.1
lacking=(setuptools==84.2.1 wheel pytools siphash24 mako markupsafe platformdirs typing_extensions onnxsim openvino openvino-telemetry)
"${pip[@]}" "${wheels[@]}" --no-deps "${lacking[@]}"
if ((!small)); then
  # The extras cpu, export and report, and what the tests need, without torch.
  "${pip[@]}" "${wheels[@]}" \
    numpy pillow tqdm openvino onnx onnxscript onnx-ir ml_dtypes onnxruntime safetensors transformers matplotlib \
    pytest scipy scikit-learn
fi
if ((rtx)); then
  version=1.7.1.116
  "${pip[@]}" --no-deps --no-binary :all: "tensorrt_rtx_cu13==$version" # the package itself comes as source only
  "${pip[@]}" "${wheels[@]}" --no-deps "tensorrt_rtx_cu13_libs==$version" "tensorrt_rtx_cu13_bindings==$version"
fi
(cd "$folder" && ls -sSh1 && du -sh .)
