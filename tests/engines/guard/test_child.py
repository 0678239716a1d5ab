"""Whatever ends the work, the command line answers in one line and leaves nothing."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engines.guard.ledger import Ledger, temporary_folder

ROOT = Path(__file__).parents[3]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the child process is for Linux")

# A program of the guard's, which does as its argument says, with a file half-written beside `out`.
PROGRAM = """
import ctypes, os, sys, time
from pathlib import Path
from engines.bundle import writing
from engines.files import replacing
from engines.guard.child import guarded
from engines.guard.ledger import ledger, temporary_folder

def work():
    with writing(Path(sys.argv[2])) as folder, temporary_folder() as other, replacing(Path(sys.argv[3])) as file:
        (folder / "engine.bin").write_bytes(b"half")
        file.write(b"half")
        with ledger.doing("openvino 1.2 compiled the network"):
            try:
                print("ready", other, os.getpid(), flush=True)
                exec(sys.argv[1])
            except KeyboardInterrupt:
                time.sleep(0.3)
                print("stopped", flush=True)
                return 130
    return 7

sys.exit(guarded(work, "build-engine net.onnx"))
"""


def _start(work: str, folder: Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, work, str(folder / "out"), str(folder / "file")]
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def _ready(process: subprocess.Popen[str]) -> tuple[Path, int]:
    assert process.stdout is not None
    word, other, pid = process.stdout.readline().split()
    assert word == "ready"
    assert Path(other).is_dir()
    return Path(other), int(pid)


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_the_exit_code_is_passed_on(tmp_path: Path) -> None:
    process = _start("pass", tmp_path)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (7, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


@LINUX
@pytest.mark.parametrize(
    ("work", "name"),
    [("ctypes.string_at(0)", "SIGSEGV"), ("os.abort()", "SIGABRT"), ("os.kill(os.getpid(), 8)", "SIGFPE")],
)
def test_a_crash_is_one_line_and_leaves_nothing(tmp_path: Path, work: str, name: str) -> None:
    process = _start(work, tmp_path)
    other, _ = _ready(process)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert line.startswith(
        f"error: build-engine net.onnx: crashed with {name} while openvino 1.2 compiled the network (the fault is"
    )
    assert line.endswith("nothing half-written is left")
    assert not list(tmp_path.iterdir())
    assert not other.exists()


@LINUX
def test_a_kill_for_want_of_memory_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    process = _start("time.sleep(60)", tmp_path)
    other, pid = _ready(process)
    os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert "killed while openvino 1.2 compiled the network (most likely by the system, for want of memory" in line
    assert not list(tmp_path.iterdir())
    assert not other.exists()


@LINUX
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to", ["parent", "child", "group", "both"])
def test_a_signal_ends_the_work_once_whoever_it_is_sent_to(tmp_path: Path, kind: signal.Signals, to: str) -> None:
    process = _start("time.sleep(60)", tmp_path, start_new_session=True)
    other, pid = _ready(process)
    if to == "group":  # as a terminal does, and `timeout`
        os.killpg(process.pid, kind)
    if to in ("parent", "both"):
        os.kill(process.pid, kind)
    if to in ("child", "both"):
        os.kill(pid, kind)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "stopped\n", "")
    assert not other.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@LINUX
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_on_a_terminal_ends_it_and_the_terminal_is_the_childs_too(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "print(sys.stdout.isatty()); time.sleep(60)"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "out"), str(tmp_path / "file")], cwd=ROOT,
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    while b"True" not in seen:
        seen += os.read(controller, 1000)
    os.write(controller, b"\x03")
    while b"stopped" not in seen:
        seen += os.read(controller, 1000)
    assert process.wait(timeout=60) == 130
    os.close(controller)
    assert seen.count(b"stopped") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@LINUX
def test_killing_the_parent_ends_the_child(tmp_path: Path) -> None:
    process = _start("time.sleep(60)", tmp_path)
    _, pid = _ready(process)
    process.kill()
    process.communicate(timeout=60)
    assert _gone(pid)


def test_what_is_written_half_is_read_as_nothing(tmp_path: Path) -> None:
    ledger = Ledger()
    assert ledger.read() == ("", [])
    with ledger.doing("outer"), ledger.temporary(tmp_path / "a"):
        with ledger.doing("inner"):
            assert ledger.read() == ("inner", [tmp_path / "a"])
        assert ledger.read() == ("outer", [tmp_path / "a"])
        ledger._memory[8] ^= 1
        ledger._memory[6:20] = b"\xff" * 14
        assert ledger.read() == ("", [])
    assert ledger.read() == ("", [])


def test_a_temporary_folder_is_the_users_own_and_gone_afterwards() -> None:
    with temporary_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


@LINUX
def test_a_network_that_openvino_dies_of_is_one_line(tmp_path: Path) -> None:
    """Already quantised, with a concatenation of two scales before a batch normalisation: OpenVINO 2026.4.1."""
    pytest.importorskip("openvino")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch")
    rng, node = np.random.default_rng(0), onnx.helper.make_node

    def quantised(x: str, scale: str, zero: str = "z") -> list[object]:
        return [
            node("QuantizeLinear", [x, scale, zero], [x + "q"]),
            node("DequantizeLinear", [x + "q", scale, zero], [x + "d"]),
        ]

    def convolution(source: str, weights: str, out: str) -> object:
        return node("Conv", [source, weights], [out], pads=[1, 1, 1, 1])

    values = {
        "w": rng.normal(0, 0.2, (4, 3, 3, 3)), "w3": rng.normal(0, 0.2, (4, 3, 3, 3)),
        "w2": rng.normal(0, 0.2, (2, 8, 3, 3)), "s": 0.05, "s2": 0.07, "s3": 0.06,
        **{name: np.full(8, value) for name, value in (("g", 1.1), ("b", 0.1), ("m", 0.05), ("v", 0.9))},
    }  # fmt: skip
    initializers = [onnx.numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()]
    initializers += [onnx.numpy_helper.from_array(np.uint8(v), name) for name, v in (("z", 120), ("z2", 131))]
    nodes = [
        convolution("image", "w", "a"), convolution("image", "w3", "e"), *quantised("a", "s"),
        *quantised("e", "s2", "z2"), node("Concat", ["ad", "ed"], ["c"], axis=1), *quantised("c", "s3"),
        node("BatchNormalization", ["cd", "g", "b", "m", "v"], ["n"]), *quantised("n", "s"),
        convolution("nd", "w2", "out"),
    ]  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "quantised", [value("image", 1, [1, 3, 64, 64])], [value("out", 1, [1, 2, 64, 64])], initializers
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=9),
        tmp_path / "net.onnx",
    )
    argv = [sys.executable, ROOT / "deploy.py", "build-engine", "net.onnx", "-o", "b", "--tile", "64"]
    done = subprocess.run(
        [*argv, "--backend", "openvino"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode == 0:
        pytest.skip("this OpenVINO compiles it")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: build-engine net.onnx: crashed with SIGSEGV while openvino ")
    assert "compiled the network" in line
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@LINUX
@pytest.mark.parametrize("seconds", [0, 60])
def test_no_library_is_taken_down_around_a_thread_that_hangs_in_it(tmp_path: Path, seconds: int) -> None:
    work = (
        "import atexit, threading\n"
        "from engines.guard.child import end_at_once\n"
        "atexit.register(print, 'cleared up')\n"
        f"thread = threading.Thread(target=ctypes.CDLL(None).sleep, args=({seconds},), daemon=True)\n"
        "thread.start(); thread.join(0.2); end_at_once(thread.is_alive)"
    )
    process = _start(work, tmp_path)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (7, "")
    assert ("cleared up" in out) == (seconds == 0)
