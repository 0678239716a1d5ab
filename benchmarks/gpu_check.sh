#!/usr/bin/env bash
# Everything that only a GPU can tell, on a machine with an NVIDIA GPU, the CUDA toolkit and a torch for CUDA, and without
# a network.
#
#     benchmarks/gpu_check.sh WHEELS [OUT] [--steps install,kernels,times,...] [--budget SECONDS] [--cpu]
#
# WHEELS: the folder that benchmarks/gpu_wheels.sh filled.  OUT (out/gpu-check): logs, figures and the summary; its
# environment and reference masks are used again by the next call, so that the steps can be run one after the other, each
# into an OUT/gpu_check.json that holds the checks and figures of that call alone.  A check first removes the figures that
# it writes.  Each is reported as PASS, FAIL or SKIP with a reason, and the next one runs all the same, unless it reads
# the figures of one that did not pass.  The steps come in the order of their worth; with --budget a check that would not
# be done in time is skipped, and says so.  The first line of the summary says what ran: TensorRT, TensorRT-RTX, torch
# alone, or kernels alone; each figure has a line with its name, in OUT/figures.tsv too.
# Exit code 0 when TensorRT or TensorRT-RTX ran and no check failed, 3 when none failed but neither of them ran, 1 when a
# check failed, 2 when the words are wrong, 130 after Ctrl-C.  --cpu tries the script itself where there is no GPU: what
# needs one is skipped, the rest runs on small models, and 0 means that none failed.
set -uo pipefail

usage() { sed -n '2,19s/^# \{0,1\}//p' "$0"; }

all=install,kernels,times,sanitize,flow,throughput,tensorrt,peers,tests
wheels="" out="" cpu=0 steps=$all budget=0
while (($#)); do
  case $1 in
    --cpu) cpu=1 ;;
    --steps) steps=${2:?--steps needs names}; shift ;;
    --budget) budget=${2:?--budget needs seconds}; shift ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "gpu_check: got $1, expected --steps, --budget or --cpu" >&2; exit 2 ;;
    *) if [[ -z $wheels ]]; then wheels=$1; else out=$1; fi ;;
  esac
  shift
done
for step in ${steps//,/ }; do # a misspelt step would pass, since nothing of it fails
  [[ ,$all, == *,$step,* ]] || { echo "gpu_check: got the step $step, expected some of $all" >&2; exit 2; }
done
[[ $budget =~ ^[0-9]+$ ]] || { echo "gpu_check: got --budget $budget, expected whole seconds" >&2; exit 2; }
if [[ ! -d $wheels ]]; then
  echo "gpu_check: got ${wheels:-no folder of wheels}, expected one that benchmarks/gpu_wheels.sh filled" >&2
  usage >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
wheels=$(cd "$wheels" && pwd)
out=${out:-$root/out/gpu-check}
mkdir -p "$out/logs"
out=$(cd "$out" && pwd)
results=$out/results.tsv
written=$out/figures.txt # the figures of this call
: >"$results"
: >"$written"
cd "$root" || exit 2
export PYTHONPATH=$root HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 TQDM_DISABLE=1
host=$(command -v python3) || { echo "gpu_check: no python3 here" >&2; exit 2; }
venv=$out/venv
python=$venv/bin/python

# --- reporting -------------------------------------------------------------------------------------------------------

running=""

record() { # status name seconds detail
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4//$'\t'/ }" >>"$results"
  printf '%-4s %-34s %6s s  %s\n' "$@"
}

skip() { record SKIP "$1" 0 "$2"; }

# name, most seconds and about how many it takes (600:90), command...; 0 is PASS, 77 is SKIP; the last line that it
# printed is the detail
check() {
  local name=$1 most=${2%:*} about=${2#*:} log=$out/logs/$1.log begin=$SECONDS code status word last="" left
  [[ $2 == *:* ]] || about=10
  shift 2
  if ((budget)); then
    left=$((budget - SECONDS))
    if ((left < about)); then skip "$name" "it takes about $about s, and $((left > 0 ? left : 0)) s of --budget are left"; return 1; fi
    ((most <= left)) || most=$left
  fi
  for word in "$@"; do # figures of an earlier call must not pass for those of this one
    if [[ $last == --json ]]; then
      rm -f "$word" || { record FAIL "$name" 0 "cannot remove the figures of an earlier call: $word"; return 1; }
      basename "$word" >>"$written"
    fi
    last=$word
  done
  if declare -F "$1" >/dev/null; then set -- bash -uo pipefail -c "$1"; fi # one of the functions below, all exported
  timeout --kill-after=10 "$most" "$@" >"$log" 2>&1 &
  running=$!
  wait "$running" # not in the foreground, so that Ctrl-C is heard at once
  code=$?
  case $code in
    0) status=PASS ;;
    77) status=SKIP ;;
    *) status=FAIL ;;
  esac
  local detail
  detail=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c 1-400)
  case $code in
    0 | 77) ;;
    124 | 137) detail="not done after $most s; ${detail:-no output}" ;;
    *) detail="exit $code: ${detail:-no output}" ;;
  esac
  record "$status" "$name" $((SECONDS - begin)) "${detail:-done}"
  [[ $status == PASS ]]
}

finish() { # the summary, as text and JSON; exit code 0 when nothing failed
  "$host" - "$results" "$out" "$gpu" "$cpu" "$written" <<'PY'
import json, sys
from datetime import datetime, timezone
from pathlib import Path

results, out, gpu, cpu = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "1"
keys = ("status", "name", "seconds", "detail")
checks = [dict(zip(keys, line.split("\t"))) for line in results.read_text().splitlines()]
for check in checks:
    check["seconds"] = int(check["seconds"])
figures, named = {}, []
for path in sorted(out / "figures" / name for name in set(Path(sys.argv[5]).read_text().splitlines())):
    if not path.exists():  # its check ended before it wrote any, and says so
        continue
    try:
        figures[path.stem] = json.loads(path.read_text())
    except ValueError as error:
        figures[path.stem] = {"unreadable": str(error)}


def name(text):
    return "_".join("".join(c if c.isalnum() or c in "./-" else " " for c in text).split())


def tell(key, value, unit):
    if value is not None:
        named.append((key, f"{value:.6g}", unit))


for key, found in figures.items():
    for t in found.get("timings", ()):  # of kernels
        where = f"{key}.{name(t['name'])}.{t['cache']}"
        tell(f"{where}.kernel", t["kernel_us"], "us")
        tell(f"{where}.copy_of_its_bytes", t["copy_us"], "us")
        tell(f"{where}.over_copy", t["ratio"], "")
    tell(f"{key}.labels_as_fp32_torch", found.get("agreement"), "")
    tell(f"{key}.build", found.get("build_s"), "s")
    bench = found.get("bench") or {}
    for part in ("window", "frame", "gather", "engine", "stitch"):
        tell(f"{key}.{part}_p50", (bench.get(f"{part}_ms") or {}).get("p50"), "ms")
    contexts = found.get("contexts") or {}  # as the bundle's first run measured them
    tell(f"{key}.batch_one_context", contexts.get("one_ms") or None, "ms")
    tell(f"{key}.batch_two_contexts", contexts.get("two_ms") or None, "ms")
    flow = bench.get("throughput") or {}
    tell(f"{key}.in_flight", flow.get("frames_per_second"), "frames/s")
    tell(f"{key}.energy", flow.get("joules_per_frame"), "J/frame")
passed = {c["name"] for c in checks if c["status"] == "PASS"}
if "throughput" in passed:
    for line in (out / "logs" / "throughput.log").read_text().splitlines():
        for kind in ("engine alone", "one after the other", "run"):
            if line.startswith(kind.ljust(22)):
                each, ratio = line[22:].split()[:2]
                tell(f"throughput.{name(kind)}.a_frame", float(each), "ms")
                tell(f"throughput.{name(kind)}.of_the_engine", float(ratio), "")
engines = {title: any(n.startswith(f"flow-{key}-") for n in passed)
           for title, key in (("TensorRT", "tensorrt"), ("TensorRT-RTX", "tensorrt_rtx"))}
ran = [title for title, there in engines.items() if there]
torch = any(n.startswith("flow-torch_c") for n in passed)
kernels = "kernels" in passed or "times" in passed
what = " and ".join(ran) or ("torch only" if torch else "kernels only" if kernels else "nothing on a GPU")
now = datetime.now(timezone.utc).isoformat(timespec="seconds")
count = {status: sum(c["status"] == status for c in checks) for status in ("PASS", "FAIL", "SKIP")}
body = {"date": now, "gpu": gpu, "cpu_mode": cpu, "ran": what, "count": count, "checks": checks, "figures": figures,
        "named": {key: [float(value), unit] for key, value, unit in named}}
(out / "gpu_check.json").write_text(json.dumps(body, indent=1) + "\n")
(out / "figures.tsv").write_text("".join("\t".join(row) + "\n" for row in named))
lines = [f"ran: {what}", f"{gpu}, {now}", ""]
lines += [f"{c['status']:5}{c['name']:34}{c['seconds']:6} s  {c['detail']}" for c in checks]
lines += ["", *(f"{key:60} {value} {unit}".rstrip() for key, value, unit in named)]
lines += [f"{count['PASS']} passed, {count['FAIL']} failed, {count['SKIP']} skipped"]
if not ran and not cpu:
    lines += ["neither TensorRT nor TensorRT-RTX ran: what an engine does here is not known"]
(out / "summary.txt").write_text("\n".join(lines) + "\n")
print("\n" + "\n".join(lines) + f"\n{out / 'gpu_check.json'}")
sys.exit(1 if count["FAIL"] else 0 if ran or cpu else 3)
PY
}

interrupted() {
  [[ -z $running ]] || kill "$running" 2>/dev/null
  record FAIL interrupted 0 "the checks after this were not reached"
  finish
  exit 130
}
trap interrupted INT TERM

wanted() { [[ ,$steps, == *,$1,* ]]; }

module() { [[ -e $root/${1//.//}.py || -d $root/${1//.//} ]]; }

# --- facts -----------------------------------------------------------------------------------------------------------

facts() {
  if command -v nvidia-smi; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory --format=csv
  fi
  [[ -z $cuda ]] || "$cuda/bin/nvcc" --version | tail -n 2
  uname -srm
  nproc
  "$host" - <<'PY'
import importlib.metadata as m, platform
names = ("torch", "triton", "transformers", "onnx", "onnxruntime", "onnxscript", "onnxsim", "numpy", "pycuda",
         "tensorrt", "tensorrt_rtx_cu13", "openvino")
found = []
for name in names:
    try:
        found.append(f"{name} {m.version(name)}")
    except m.PackageNotFoundError:
        found.append(f"no {name}")
print(f"python {platform.python_version()}; " + ", ".join(found))
PY
}

torch_gpu() { # the name of the GPU that torch computes on, or why there is none
  "$host" - <<'PY'
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"no torch: {error}")
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU")
x = torch.ones(1024, device="cuda")
assert float((x + x).sum()) == 2048
major, minor = torch.cuda.get_device_capability()
print(f"{torch.cuda.get_device_name()}, sm_{major}{minor}, torch {torch.__version__}, CUDA {torch.version.cuda}")
PY
}

toolkit() { # the folder of the CUDA toolkit: nvcc itself says, also where what is on the PATH is a link or a script
  local nvcc folder
  nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || return 0
  for folder in "${CUDA_HOME:-}" "$("$nvcc" --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')" /usr/local/cuda; do
    [[ ! -f $folder/include/cuda.h ]] || { readlink -f "$folder"; return; }
  done
}
cuda=$(toolkit)
[[ -z $cuda ]] || export PATH=$cuda/bin:$PATH CUDA_HOME=$cuda CUDA_PATH=$cuda
export root wheels out host venv python cuda cpu
export -f facts torch_gpu
gpu="no GPU"
nogpu="no GPU (--cpu)"
check facts 60 facts
if ((cpu)); then
  skip gpu "$nogpu"
elif check gpu 120 torch_gpu; then
  gpu=$(grep sm_ "$out/logs/gpu.log" | tail -n 1)
  nogpu=""
else
  nogpu="no GPU that torch computes on"
fi

# --- install ---------------------------------------------------------------------------------------------------------

environment() {
  # --system-site-packages would lend the packages of the system's Python, not of a virtual environment whose python3
  # this is; a .pth file lends those of the running one, pip included.
  "$host" -m venv --without-pip --clear "$venv" || return
  local site
  site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') || return
  "$host" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("-packages")))' >"$site/lent.pth" || return
  "$python" -m pip --version
}

offline() {
  "$python" -m pip install --no-index --find-links "$wheels" --no-build-isolation --disable-pip-version-check --quiet "$@"
}

packages() { # what is not importable yet; setuptools first, since it builds the rest
  offline --no-deps setuptools==84.2.1 wheel || return
  local missing
  missing=$("$python" - <<'PY'
import importlib.util as u
names = {"numpy": "numpy", "PIL": "pillow", "tqdm": "tqdm", "onnx": "onnx", "onnxscript": "onnxscript", "onnx_ir": "onnx-ir",
         "ml_dtypes": "ml_dtypes", "onnxsim": "onnxsim", "onnxruntime": "onnxruntime", "safetensors": "safetensors",
         "transformers": "transformers", "pytools": "pytools", "siphash24": "siphash24", "mako": "mako",
         "platformdirs": "platformdirs", "pytest": "pytest", "openvino": "openvino"}
print(" ".join(name for module, name in names.items() if u.find_spec(module) is None))
PY
  ) || return
  # shellcheck disable=SC2086  # one word a package
  [[ -z $missing ]] || offline $missing || return
  echo "installed: ${missing:-nothing, all was there}"
}

pycuda() { # without cuRAND, which edgeseg does not use and a small toolkit does not have
  "$python" -c 'import pycuda' 2>/dev/null && { echo "there already"; return; }
  [[ -n $cuda ]] || { echo "no CUDA toolkit: no nvcc on the PATH or in /usr/local/cuda, or no cuda.h beside it"; return 1; }
  local source=$out/pycuda library
  rm -rf "$source" && mkdir -p "$source" "$out/lib" || return
  tar xzf "$wheels"/pycuda-*.tar.gz -C "$source" --strip-components 1 || return
  # The driver's library without a version in its name, where the toolkit has no stub of it.
  library=$(ldconfig -p 2>/dev/null | awk '/libcuda\.so\.1/ && /x86-64/ {print $NF; exit}')
  library=${library:-$(ls /usr/local/nvidia/lib64/libcuda.so.1 2>/dev/null || true)}
  [[ -z $library ]] || ln -sf "$library" "$out/lib/libcuda.so"
  export LIBRARY_PATH=$out/lib:$cuda/lib64/stubs${LIBRARY_PATH:+:$LIBRARY_PATH} CFLAGS=-O0
  if ! echo 'int main(void) { return 0; }' | cc -x c - -lcuda -o "$out/lib/linked"; then
    echo "no libcuda.so to link with: neither a driver nor a stub in the toolkit"
    return $((cpu ? 77 : 1))
  fi
  (cd "$source" && "$python" configure.py --cuda-root="$cuda" --no-cuda-enable-curand) || return
  offline --no-deps "$source" || { grep -m 1 -E 'fatal error|cannot find|error: command' "$out/logs/pycuda.log"; return 1; }
  "$python" -c 'import importlib.metadata as m; print("pycuda", m.version("pycuda"), "built")'
}

driver() {
  "$python" - <<'PY'
import pycuda.driver as cuda
cuda.init()
device = cuda.Device(0)
major, minor = device.compute_capability()
print(f"pycuda on {device.name()}, sm_{major}{minor}, driver for CUDA {cuda.get_driver_version()}")
PY
}

core() {
  offline --no-deps -e "$root" || return
  "$python" -c 'from engines.tiling import core; print("C core:", core.build_info())'
}

export -f offline environment packages pycuda driver core
if wanted install; then
  if [[ -x $python ]] && "$python" -m pip --version >/dev/null 2>&1; then
    skip environment "there already: $venv"
  else
    check environment 120 environment
  fi
  check packages 300:60 packages
  check core 300:40 core
  if [[ -z $nogpu || -n $cuda ]]; then check pycuda 600:120 pycuda; else skip pycuda "$nogpu, no nvcc"; fi
  if [[ -z $nogpu ]]; then check driver 60 driver; else skip driver "$nogpu"; fi
  check doctor 120 "$python" deploy.py doctor
fi
if [[ ! -x $python ]]; then
  record FAIL python 0 "no environment in $venv: run the step install"
  finish
  exit 1
fi

# --- kernels ---------------------------------------------------------------------------------------------------------

mkdir -p "$out/figures" "$out/work"
if wanted kernels; then
  if [[ -n $nogpu ]]; then
    skip kernels "$nogpu"
  elif ! module benchmarks.kernels; then
    skip kernels "this version has no benchmarks.kernels"
  else
    check kernels 600:40 "$python" -m benchmarks.kernels --check
  fi
fi
ratios() {
  "$python" - "$out/figures/kernels.json" <<'PY'
import json, sys
from pathlib import Path
timings = json.loads(Path(sys.argv[1]).read_text())["timings"]
print("; ".join(f"{t['name']} {t['cache']} {t['ratio']:.2f}x" for t in timings))
sys.exit(any(t["ratio"] > 2 for t in timings if not t["name"].startswith(("tail", "views"))))  # which arithmetic bounds
PY
}
export -f ratios
if wanted times; then
  if [[ -n $nogpu ]]; then
    skip times "$nogpu"
  elif ! module benchmarks.kernels; then
    skip times "this version has no benchmarks.kernels"
  else
    if check times 600:60 "$python" -m benchmarks.kernels --json "$out/figures/kernels.json"; then
      check times-within-2x-of-a-copy 60 ratios
    else
      skip times-within-2x-of-a-copy "times did not pass"
    fi
    cat "$out/logs/times.log"
  fi
fi
if wanted sanitize; then
  sanitizer=$(command -v compute-sanitizer || ls "$cuda"/compute-sanitizer/compute-sanitizer 2>/dev/null || true)
  for tool in memcheck racecheck initcheck; do
    if [[ -n $nogpu ]]; then
      skip "kernels-$tool" "$nogpu"
    elif [[ -z $sanitizer ]]; then
      skip "kernels-$tool" "compute-sanitizer is not installed"
    else
      check "kernels-$tool" 900:60 "$sanitizer" --tool "$tool" --error-exitcode 9 "$python" -m benchmarks.kernels --check
    fi
  done
fi

# --- the whole flow, beside peers, in TensorRT -------------------------------------------------------------------------

flow() { # backend, precision, model, more words...
  local name=flow-$1-$2-$3 backend=$1 precision=$2 model=$3
  shift 3
  [[ " $* " != *" --batch "* ]] || name+=-batch
  check "$name" 1800:90 "$python" -m benchmarks.gpu_flow "$out/work" --backend "$backend" --precision "$precision" \
    --model "$model" --json "$out/figures/$name.json" "$@"
}

if wanted flow; then
  if [[ -n $nogpu ]]; then
    skip flow-torch_cuda "$nogpu"
    flow torch fp32 small --size 300x200 --frames 2 --rounds 2
  else
    for precision in fp16 fp32; do flow torch_cuda "$precision" b0; done
  fi
fi
if wanted throughput; then # of the bundle that flow built
  bundle=$out/work/b0-torch_cuda-fp16-1 size=2048x1024
  [[ -z $nogpu ]] || bundle=$out/work/small-torch-fp32-1 size=300x200
  if [[ -e $bundle/manifest.json ]]; then
    check throughput 600:60 "$python" -m benchmarks.throughput "$bundle" --images 60 --rounds 3 --size "$size"
    cat "$out/logs/throughput.log"
  else
    skip throughput "no $(basename "$bundle"): the step flow builds it"
  fi
fi
rtx() { # tensorrt_rtx from the folder, unless it is there
  "$python" -c 'import tensorrt_rtx' 2>/dev/null && { echo "there already"; return; }
  compgen -G "$wheels/tensorrt_rtx_cu13_libs-*.whl" >/dev/null || { echo "not in $wheels"; return 77; }
  offline tensorrt_rtx_cu13 || return
  "$python" -c 'import tensorrt_rtx; print("tensorrt_rtx", tensorrt_rtx.__version__)'
}

export -f rtx
if wanted tensorrt; then
  check tensorrt_rtx 300 rtx
  for backend in tensorrt tensorrt_rtx; do
    if [[ -n $nogpu ]]; then
      skip "flow-$backend" "$nogpu"
    elif [[ $backend == tensorrt_rtx && $gpu =~ sm_(90|87|110) ]]; then
      skip "flow-$backend" "TensorRT-RTX compiles for no GPU of ${BASH_REMATCH[0]}"
    elif ! "$python" -c "import $backend" 2>/dev/null; then
      skip "flow-$backend" "$backend is not installed"
    else
      for precision in fp32 fp16 int8; do
        flow "$backend" "$precision" b0
        flow "$backend" "$precision" setr-pup --frames 2 --rounds 10
      done
      flow "$backend" fp16 b0 --batch 2
    fi
  done
fi

if wanted peers; then
  if [[ -n $nogpu ]]; then
    skip peers "$nogpu"
    if "$python" -c 'import openvino' 2>/dev/null; then backends=openvino; else backends=torch; fi
    check peers-on-cpu 600 "$python" -m benchmarks.gpu_peers --device cpu --models tiny --size 200x150 --rounds 2 \
      --backends "$backends" --json "$out/figures/peers-on-cpu.json"
  else
    for precision in fp16 fp32; do flow torch_compile "$precision" b0; done
    check peers 1800:300 "$python" -m benchmarks.gpu_peers --models b0,b2 --json "$out/figures/peers.json"
    cat "$out/logs/peers.log"
  fi
fi

# --- tests -----------------------------------------------------------------------------------------------------------

tests() { # the files that have such tests, so that what the others need may be missing here
  local files
  mapfile -t files < <(grep -rlE 'pytest\.mark\.gpu' "$root/tests" --include='test_*.py')
  ((${#files[@]})) || { echo "no test is marked gpu"; return 77; }
  "$python" -m pytest -m gpu -q -rs -p no:cacheprovider "${files[@]}"
}

export -f tests
if wanted tests; then
  if [[ -n $nogpu ]]; then skip tests "$nogpu"; else check tests 900:120 tests; fi
fi
finish
