"""The benchmark's writers, on recorded numbers; what it measures is measured by hand, never in the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from benchmarks import gpu_flow, gpu_peers
from benchmarks.peers import measure
from benchmarks.peers import report as writer
from benchmarks.peers.client import Client, Failed
from benchmarks.peers.measure import Row, miou
from benchmarks.peers.models import MODELS
from benchmarks.peers.startup import RunRow
from benchmarks.slide import clear_pixels, slide
from tests.models import tiny

ROOT = Path(__file__).parents[2]


def _row(name: str, frames: tuple[float, ...], speedup: float) -> Row:
    median = sorted(frames)[1]
    return Row("b0", "2048x1024", name, name, median, max(frames), 0.9 * median, 0.1 * median, speedup, 1.0, 1e-5,
               0.78, 1500.0, 1.0, 2.0, frames)  # fmt: skip


def _report() -> writer.Report:
    rows = (
        _row("eager", (8000.0, 9000.0, 1000.0), 1.0),
        Row("b0", "2048x1024", "monai", "MONAI", error="not installed: No module named 'monai'"),
        _row("openvino-fp32", (2000.0, 1800.0, 1900.0), 4.0),
        _row("edgeseg-fp32", (500.0, 900.0, 1000.0), 10.0),
    )
    runs = (RunRow("b0", "fp32", "2048x1024", 3, 0.9, 2.0, 700.0),)
    return writer.Report(rows, runs, 2, {"torch": "2"}, True, {"fp16": "no fp16 here"}, ("a note",), load=0.0)


def test_reports_survive_json_and_name_everybody(tmp_path: Path) -> None:
    report = _report()
    writer.write(report, tmp_path)
    assert writer.Report.load_json(tmp_path / "peers.json") == report
    for text in (writer.table(report), (tmp_path / "peers.md").read_text()):
        for words in ("eager", "10.00x", "not installed", "no fp16 here", "a note", "first engine call after 0.90 s"):
            assert words in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peers.json", "peers.md"]


def test_ratios_are_taken_within_rounds() -> None:
    """8000/500, 9000/900, 1000/1000: their median is 10, while the ratio of the medians is 8.9."""
    found = {(r["edgeseg"], r["peer"]): r["ratio"] for r in writer.ratios(_report().rows)}
    assert found == {("fp32", "eager"): 10.0, ("fp32", "openvino-fp32"): 2.0}


def test_the_plot_draws_every_theme_and_repeats_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[report]'")
    writer.write(_report(), tmp_path)
    pictures = []
    for _ in range(2):
        command = [sys.executable, "-m", "benchmarks.peers.plot", str(tmp_path / "peers.json")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        pictures.append([Path(line).read_bytes() for line in done.stdout.splitlines()])
    assert len(pictures[0]) == 2
    assert pictures[0] == pictures[1]


def test_both_stitchings_are_one_definition() -> None:
    """Lean or not, and with windows that snap back to the edge: the mean of the full-size logits of every window."""
    image = np.random.default_rng(0).integers(0, 256, (150, 250, 3), np.uint8)
    plain = slide(image, tiny(), 128, 96, keep=True)
    lean = slide(image, tiny(), 128, 96, lean=True)
    assert plain.logits is not None
    assert plain.logits.shape == (1, 5, 150, 250)
    clear = clear_pixels(plain.logits)
    assert clear.mean() > 0.99
    assert np.array_equal(plain.labels[clear], lean.labels[clear])
    top = plain.logits.topk(2, dim=1).values[0]
    assert np.array_equal(clear, (top[0] - top[1] >= 1e-4).numpy())
    assert torch.equal(plain.logits.argmax(1)[0], torch.from_numpy(plain.labels).long())


@pytest.mark.parametrize("lean", [False, True])
def test_stitching_in_half_precision_gives_nearly_the_same_labels(lean: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 250, 3), np.uint8)
    plain = slide(image, tiny(), 128, 96)
    half = slide(image, tiny().half(), 128, 96, lean=lean, dtype=torch.float16, keep=True)
    assert half.logits is not None
    assert half.logits.dtype == torch.float16
    assert (plain.labels == half.labels).mean() > 0.99


def test_gpu_peers_run_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--models", "tiny", "--size", "200x150", "--rounds", "1", "--backends", "openvino,tpu"]
    assert gpu_peers.main([*words, "--json", str(tmp_path / "peers.json")]) == 0
    body = json.loads((tmp_path / "peers.json").read_text())
    eager, ours, unknown = body["models"]["tiny"]["rows"]
    assert (eager["equal"], len(eager["times_ms"]), unknown["times_ms"]) == (1.0, 1, [])
    assert ours["equal"] > 0.999
    assert min(ours[part] for part in ("gather_ms", "network_ms", "stitch_ms", "within_ms")) > 0
    assert ours["outside"] == 1 - ours["network_ms"] / ours["within_ms"]
    assert eager["within_ms"] == eager["median_ms"]
    assert unknown["error"].startswith("backend: got 'tpu'")
    assert "no goals on a CPU" in capsys.readouterr().out


def test_gpu_goals_are_ratios_within_rounds() -> None:
    peer = gpu_peers.Row(gpu_peers.PEER, [60.0, 50.0, 80.0], 40.0, 60.0)
    slow = gpu_peers.Row("edgeseg fp16 torch_cuda", [30.0, 31.0, 29.0], 10.0, 30.0)
    fast = gpu_peers.Row("edgeseg fp16 tensorrt", [10.0, 10.0, 20.0], 18.0, 20.0)
    dead = gpu_peers.Row("edgeseg fp16 tensorrt_rtx", [5.0, 5.0], 5.0, 5.0, error="the GPU was lost")
    lines, reached = gpu_peers.verdict([peer, slow, fast, dead])
    assert reached
    assert lines[0].startswith("reached: edgeseg fp16 tensorrt is 5.00 times as fast")
    assert "10.0 % of its frame of 20.00 ms" in lines[1]  # of the rounds that timed the engine, not of 10 ms
    fast.network_ms = 10.0
    assert not gpu_peers.verdict([peer, slow, fast])[1]
    assert not gpu_peers.verdict([peer, gpu_peers.Row("edgeseg fp16 tensorrt", error="no GPU")])[1]
    assert "no GPU" in gpu_peers.table([gpu_peers.Row("edgeseg fp16 tensorrt", error="no GPU")])
    peer.times_ms, peer.error = [60.0], "out of memory"
    assert gpu_peers.verdict([peer, slow, fast]) == (["no figures: the peer or every edgeseg backend failed"], False)


@pytest.mark.parametrize(
    ("network", "unsplit", "words"),
    [(21.0, "", "took 21.00 ms of a frame of 20.00 ms"), (None, "the engine could not be timed: lost", "timed: lost")],
)
def test_an_engine_that_was_not_timed_reaches_no_goal(network: float | None, unsplit: str, words: str) -> None:
    peer = gpu_peers.Row(gpu_peers.PEER, [60.0], 40.0, 60.0)
    fast = gpu_peers.Row("edgeseg fp16 tensorrt", [10.0], network, None if network is None else 20.0, unsplit=unsplit)
    lines, reached = gpu_peers.verdict([peer, fast])
    assert (reached, fast.to_json()["outside"]) == (False, None)
    assert words in lines[1]
    assert words in gpu_peers.table([fast])


def test_miou_ignores_255_and_absent_classes() -> None:
    truth = np.array([[0, 0, 1, 255]], np.uint8)
    labels = np.array([[0, 1, 1, 3]], np.uint8)
    assert miou(labels, truth) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_a_contestant_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"got no manifest\.json"):
        Client(Path(sys.executable), "edgeseg-fp32", "b0", tmp_path, 1)


class _Fake:
    """A contestant that answers at once; `eager` dies in the second round."""

    def __init__(self, python: Path, name: str, model: str, work: Path, threads: int) -> None:
        self.name, self.asked = name, 0
        self.hello = {"versions": {}, "load_s": 1.0, "first_s": 2.0}

    def ask(self, **request: str) -> dict[str, object]:
        if "save" in request:
            np.save(request["save"], np.zeros((4, 8), np.uint8))
            return {}
        self.asked += 1
        if self.name == "eager" and self.asked == 2:
            raise Failed("exit -9: killed, out of memory?")
        return {"network_s": 0.2, "rest_s": 0.1, "peak_mb": 100.0, "peak_exact": True}

    def close(self) -> None:
        pass


def test_a_death_costs_only_the_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "Client", _Fake)
    np.save(tmp_path / "truth.npy", np.zeros((4, 8), np.uint8))
    image = measure.Image("8x4", tmp_path / "pixels.npy", tmp_path / "truth.npy", 3)
    results = measure.Results()
    names = ["eager", "ort", "edgeseg-fp32"]
    pythons = dict.fromkeys(names, Path(sys.executable))
    measure.compete(MODELS["b0"], names, {"ort": "not installed"}, pythons, tmp_path, [image], 1, results)
    eager, ort, ours = results.rows
    assert eager.error == "exit -9: killed, out of memory?"
    assert ort.error == "not installed"
    assert ours.frames_ms == pytest.approx((300.0, 300.0, 300.0))
    assert (ours.miou, ours.speedup, ours.labels_equal) == (1.0, None, None)


def test_build_arguments_open_the_gate_only_for_random_weights(tmp_path: Path) -> None:
    words = MODELS["b2"].build_arguments("int8", tmp_path, tmp_path / "calib")
    assert words[words.index("--calib") + 1] == str(tmp_path / "calib")
    assert "--min-agreement" in words
    assert "--min-agreement" not in MODELS["b0"].build_arguments("int8", tmp_path, tmp_path / "calib")
    assert json.dumps(MODELS["b2"].build_arguments("fp32", tmp_path, tmp_path)).count("min-agreement") == 0


def _flow(*words: str) -> gpu_flow.Result:
    args = gpu_flow._arguments().parse_args(list(words))
    return gpu_flow.flow(args)


def test_gpu_flow_says_what_it_cannot_and_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path), "--precision", "int8"]
    assert gpu_flow.main([*words, "--backend", "tpu"]) == gpu_flow.SKIP
    assert gpu_flow.main([*words, "--backend", "torch_cuda", "--json", str(tmp_path / "a.json")]) == gpu_flow.SKIP
    assert json.loads((tmp_path / "a.json").read_text())["status"] == "skipped"
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "b0 int8 tpu: skipped: this version has no backend tpu"
    assert out[1].startswith("b0 int8 torch_cuda: skipped: ")


@pytest.fixture
def deploy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A `deploy.py` that writes what it is known to write.  Returns the verbs; `wrong` in the folder's name: labels."""
    verbs: list[str] = []

    def run(verb: str, *words: object) -> list[str]:
        verbs.append(verb)
        target = Path(str(words[words.index("-o") + 1])) if "-o" in words else tmp_path
        if "--batch" in words and "--help" not in words:
            raise gpu_flow.Failed("deploy.py build-engine, exit 3: error: batch of 2 diverges", 3)
        if verb == "build-engine":
            target.mkdir(parents=True, exist_ok=True)
            (target / "manifest.json").write_text('{"sdk": "sdk 1", "device": "gpu 2"}')
        elif verb == "run":
            target.mkdir(parents=True)
            given = Path(str(words[1]))
            for path in sorted(given.glob("*.png")) if given.is_dir() else [given]:
                labels = np.zeros((10, 20), np.uint8)
                if "openvino" in str(target) and target.name == "all" and path.stem == "2":
                    labels[0, :3] = 1  # 1.5 % of the second frame
                PIL.Image.fromarray(labels).save(target / path.name)
        elif verb == "bench":
            target.write_text(json.dumps({f"{part}_ms": {"p50": 1.5} for part in ("frame", "engine")}))
        return ["--batch"]

    monkeypatch.setattr(gpu_flow, "_deploy", run)
    return verbs


def test_gpu_flow_compares_every_frame(tmp_path: Path, deploy: list[str]) -> None:
    words = [str(tmp_path), "--size", "20x10", "--frames", "2", "--precision"]
    good = _flow(*words, "fp32", "--backend", "torch")
    assert (good.status, good.agreement, good.frames, good.device) == ("ok", 1.0, 2, "gpu 2")
    assert "ms p50 frame 1.50, engine 1.50" in str(good)
    assert deploy == ["build-engine", "run", "build-engine", "run", "run", "bench"]
    bad = _flow(*words, "fp32", "--backend", "openvino")
    assert (bad.status, bad.agreement) == ("failed", 0.985)
    assert "98.500 % of labels as in fp32 PyTorch, required 99.9 %" in str(bad)
    assert _flow(*words, "int8", "--backend", "openvino").status == "ok"  # its gate asks for less
    refused = _flow(*words, "fp32", "--backend", "openvino", "--batch", "2")
    assert (refused.status, refused.why.endswith("batch of 2 diverges")) == ("refused", True)


def test_gpu_flow_keeps_nothing_of_an_interrupted_call(
    tmp_path: Path, deploy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(tmp_path), "--size", "20x10", "--frames", "2", "--precision", "fp32", "--backend", "torch"]
    whole = gpu_flow._deploy

    def interrupted(verb: str, *rest: object) -> list[str]:
        if verb != "run":
            return whole(verb, *rest)
        Path(str(rest[-1])).mkdir(parents=True)
        raise gpu_flow.Failed("deploy.py run: not done after 900 s", -1)

    monkeypatch.setattr(gpu_flow, "_deploy", interrupted)
    with pytest.raises(gpu_flow.Failed, match="not done"):
        _flow(*words)
    monkeypatch.setattr(gpu_flow, "_deploy", whole)
    assert _flow(*words).agreement == 1.0
    left = next(tmp_path.glob("*.masks")) / "all" / "2.png"
    assert left.exists()

    def lazy(verb: str, *rest: object) -> list[str]:
        return [] if verb == "run" else whole(verb, *rest)

    monkeypatch.setattr(gpu_flow, "_deploy", lazy)  # writes no mask: those of the call before do not count
    assert _flow(*words).status == "failed"


SCRIPTS = [ROOT / "benchmarks" / name for name in ("gpu_check.sh", "gpu_wheels.sh")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_gpu_scripts_say_what_they_want(script: Path) -> None:
    for words, code in ((["--help"], 0), ([], 2), (["--nonsense"], 2)):
        done = subprocess.run([str(script), *words], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert done.stdout + done.stderr


def test_gpu_check_reports_every_step_and_goes_on(tmp_path: Path) -> None:
    """With this environment in place of one that it would make, and one step that fails: the next is reached."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "out" / "venv" / "bin").mkdir(parents=True)
    stand_in = tmp_path / "out" / "venv" / "bin" / "python"
    stand_in.write_text(f'#!/bin/sh\n[ "$2" = benchmarks.gpu_peers ] && exit 5\nexec {sys.executable} "$@"\n')
    stand_in.chmod(0o755)
    command = [str(SCRIPTS[0]), str(tmp_path / "wheels"), str(tmp_path / "out"), "--cpu", "--steps"]
    misspelt = subprocess.run([*command, "kernel"], capture_output=True, text=True, check=False)
    assert (misspelt.returncode, "got the step kernel, expected" in misspelt.stderr) == (2, True)
    for steps, code in (("kernels,tests", 0), ("peers,tests", 1)):
        done = subprocess.run([*command, steps], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        body = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
        found = {check["name"]: (check["status"], check["detail"]) for check in body["checks"]}
        assert found["tests"] == ("SKIP", "no GPU (--cpu)")
        assert found["facts"][0] == "PASS"
        assert body["ran"] == "nothing on a GPU"
        assert (tmp_path / "out" / "summary.txt").read_text().startswith("ran: nothing on a GPU\n")
    assert found["peers-on-cpu"] == ("FAIL", "exit 5: no output")
    assert "1 failed" in (tmp_path / "out" / "summary.txt").read_text()


def test_gpu_check_on_a_gpu_runs_every_check(tmp_path: Path) -> None:
    """The same script where everything answers as on a GPU: what it would have run there, word by word."""
    (tmp_path / "wheels").mkdir()
    said = tmp_path / "said"
    tools = {
        "bin/nvidia-smi": "exit 0",
        "bin/python3": 'input=$(cat)\ncase $input in\n*"is_available()"*) echo "NVIDIA Fake, sm_90, torch 2" ;;\n'
        f'*) echo "$input" | {sys.executable} "$@" ;;\nesac',
        "bin/compute-sanitizer": f'echo "sanitizer $*" >> {said}',
        "out/venv/bin/python": f'case "$1" in -c|-) exit 0;; esac\necho "$*" >> {said}\n'
        'case "$*" in *"flow"*int8*|*"kernels --json"*) echo "no scales"; exit 1;; esac\n'
        'while [ $# -gt 1 ]; do [ "$1" = --json ] && echo \'{"new": 1}\' > "$2"; shift; done; echo fine',
    }
    figures = tmp_path / "out" / "figures"
    figures.mkdir(parents=True)
    for name in ("kernels", "peers", "flow-tensorrt-int8-b0", "left-over"):  # of an earlier call
        (figures / f"{name}.json").write_text('{"old": 1, "timings": []}')
    for name, body in tools.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    steps = "kernels,times,sanitize,flow,throughput,tensorrt,peers,tests"
    command = [str(SCRIPTS[0]), str(tmp_path / "wheels"), str(tmp_path / "out"), "--steps", steps]
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    body = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert body["gpu"] == "NVIDIA Fake, sm_90, torch 2"
    failed = {check["name"]: check["detail"] for check in body["checks"] if check["status"] == "FAIL"}
    names = ["times", *(f"flow-tensorrt-int8-{model}" for model in ("b0", "setr-pup"))]
    assert failed == dict.fromkeys(names, "exit 1: no scales")
    skipped = {check["name"]: check["detail"] for check in body["checks"] if check["status"] == "SKIP"}
    assert skipped["times-within-2x-of-a-copy"] == "times did not pass"
    assert skipped["flow-tensorrt_rtx"] == "TensorRT-RTX compiles for no GPU of sm_90"
    assert skipped["throughput"].startswith("no b0-torch_cuda-fp16-1")
    assert body["ran"] == "TensorRT"
    assert body["figures"]["peers"] == {"new": 1}
    assert all(found == {"new": 1} for found in body["figures"].values())
    assert {"kernels", "left-over", "flow-tensorrt-int8-b0"}.isdisjoint(body["figures"])
    lines = said.read_text().splitlines()
    if (ROOT / "benchmarks" / "kernels.py").exists():
        assert "-m benchmarks.kernels --check" in lines
        assert f"-m benchmarks.kernels --json {tmp_path}/out/figures/kernels.json" in lines
        for tool in ("memcheck", "racecheck", "initcheck"):
            assert any(line.startswith(f"sanitizer --tool {tool} --error-exitcode 9 ") for line in lines)
    work = tmp_path / "out" / "work"
    for words in (
        f"-m benchmarks.gpu_flow {work} --backend torch_compile --precision fp16 --model b0 --json "
        f"{tmp_path}/out/figures/flow-torch_compile-fp16-b0.json",
        f"-m benchmarks.gpu_flow {work} --backend tensorrt --precision fp16 --model b0 --json "
        f"{tmp_path}/out/figures/flow-tensorrt-fp16-b0-batch.json --batch 2",
        f"-m benchmarks.gpu_peers --models b0,b2 --json {tmp_path}/out/figures/peers.json",
    ):
        assert words in lines
        module, *arguments = words.split()[1:]
        if module.endswith(("gpu_flow", "gpu_peers")):  # the real parsers take them
            {"gpu_flow": gpu_flow, "gpu_peers": gpu_peers}[module.split(".")[1]]._arguments().parse_args(arguments)
    assert any(line.startswith("-m pytest -m gpu") and "test_torch_gpu.py" in line for line in lines)


def _as_on_a_gpu(folder: Path, python: str) -> tuple[list[str], dict[str, str]]:
    """A call of gpu_check.sh where torch sees a GPU and `python` answers for the environment's."""
    (folder / "wheels").mkdir()
    tools = {
        "bin/nvidia-smi": "exit 0",
        "bin/python3": 'input=$(cat)\ncase $input in\n*"is_available()"*) echo "NVIDIA Fake, sm_90, torch 2" ;;\n'
        f'*) echo "$input" | {sys.executable} "$@" ;;\nesac',
        "bin/compute-sanitizer": "exit 0",
        "out/venv/bin/python": python,
    }
    for name, body in tools.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return [str(SCRIPTS[0]), str(folder / "wheels"), str(folder / "out"), "--steps"], environment


def test_gpu_check_is_not_green_without_tensorrt(tmp_path: Path) -> None:
    """Nothing fails, and neither TensorRT is installed: the exit code and the first line say so."""
    command, environment = _as_on_a_gpu(tmp_path, '[[ $2 == "import tensorrt"* ]] && exit 1; echo fine')
    for steps, ran in (("kernels,sanitize,flow,tensorrt", "torch only"), ("kernels", "kernels only")):
        done = subprocess.run([*command, steps], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 3, done.stdout + done.stderr
        lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
        assert lines[0] == f"ran: {ran}"
        assert lines[-1].startswith("neither TensorRT nor TensorRT-RTX ran")


def test_gpu_check_says_what_does_not_fit_its_budget(tmp_path: Path) -> None:
    command, environment = _as_on_a_gpu(tmp_path, "echo fine")
    words = ["kernels,times,sanitize,flow", "--budget", "50"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, env=environment)
    body = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    found = {check["name"]: (check["status"], check["detail"]) for check in body["checks"]}
    assert done.returncode == 3, done.stdout + done.stderr
    assert found["kernels"][0] == "PASS"
    assert found["times"][0] == found["flow-torch_cuda-fp16-b0"][0] == "SKIP"
    assert found["times"][1].startswith("it takes about 60 s, and ")
    assert found["times"][1].endswith(" s of --budget are left")
    wrong = subprocess.run([*command, "kernels", "--budget", "1m"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "expected whole seconds" in wrong.stderr) == (2, True)


def test_every_figure_of_gpu_check_has_a_name(tmp_path: Path) -> None:
    timing = {"name": "gather float16", "kernel": "k", "cache": "cold", "bytes": 1, "kernel_us": 3.0, "copy_us": 2.0,
              "ratio": 1.5, "graph": True}  # fmt: skip
    bench = {"frame_ms": {"p50": 7.25}, "throughput": {"frames_per_second": 140.0, "joules_per_frame": 0.5}}
    found = {"timings": [timing], "agreement": 0.999, "build_s": 12.0, "bench": bench}
    python = (
        f"""while [ $# -gt 1 ]; do [ "$1" = --json ] && echo '{json.dumps(found)}' > "$2"; shift; done; echo fine"""
    )
    command, environment = _as_on_a_gpu(tmp_path, python)
    subprocess.run([*command, "times,flow"], capture_output=True, text=True, check=False, env=environment)
    lines = (tmp_path / "out" / "figures.tsv").read_text().splitlines()
    named = {name: (float(value), unit) for name, value, unit in (line.split("\t") for line in lines)}
    assert named["kernels.gather_float16.cold.over_copy"] == (1.5, "")
    assert named["flow-torch_cuda-fp16-b0.frame_p50"] == (7.25, "ms")
    assert named["flow-torch_cuda-fp16-b0.energy"] == (0.5, "J/frame")
    assert named["flow-torch_cuda-fp16-b0.in_flight"] == (140.0, "frames/s")
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert all(name in summary for name in named)
