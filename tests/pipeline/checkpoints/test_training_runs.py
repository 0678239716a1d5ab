"""Checkpoints as trainers write them: what lies around the weights, averaged weights, prefixes, shards and variants."""

from __future__ import annotations

import json
import os
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoints import LoadedModel, load_model
from pipeline.checkpoints.inert import NAMES
from tests.pipeline.checkpoints.published import CLASSES, State, huggingface_model, mmseg_state, refusal, save

NAMED = tuple(f"thing {index}" for index in range(CLASSES))
HEAD = "decode_head.conv_seg.weight"


@pytest.fixture(scope="module")
def state() -> State:
    return mmseg_state()


@pytest.fixture(scope="module")
def averaged() -> State:
    return mmseg_state(seed=2)


@pytest.fixture
def history_buffer(monkeypatch: pytest.MonkeyPatch) -> type:
    """mmengine's class as far as pickle sees it: arrays, and functions of the class itself."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.array([0.5, 0.25])
            self._count_history = np.array([1, 1])
            self.statistics_methods = {"min": HistoryBuffer.min}
            self.max_length = 1000000

        def min(self) -> float:
            return float(self._log_history.min())

    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = names[-1], "HistoryBuffer"
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = names[-1], "HistoryBuffer.min"
    sys.modules[names[-1]].HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    return HistoryBuffer


def same(loaded: LoadedModel, state: State) -> bool:
    weights = loaded.module.state_dict()
    return all(
        torch.equal(weights[ours], state[theirs].reshape(weights[ours].shape))
        for ours, theirs in (
            ("head.classify.weight", HEAD),
            ("stages.1.blocks.0.ffn.fc2.weight", "backbone.layers.1.1.0.ffn.layers.4.weight"),
        )
    )


def write(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


def test_a_runner_of_mmengine(state: State, history_buffer: type, tmp_path: Path) -> None:
    content = {
        "meta": {"dataset_meta": {"classes": NAMED, "palette": [[1, 2, 3]] * CLASSES}, "epoch": 3},
        "message_hub": {
            "log_scalars": OrderedDict({"train/loss": history_buffer()}),
            "runtime_info": {"best_score": np.float64(0.5), "iter": 9},
        },
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
    }
    loaded = load_model(write(tmp_path / "iter_9.pth", content))
    assert same(loaded, state)
    assert (loaded.spec.classes, loaded.spec.palette[0]) == (NAMED, (1, 2, 3))


def test_mmcv_keeps_a_numpy_score_beside_the_best(state: State, tmp_path: Path) -> None:
    meta = {"CLASSES": NAMED, "hook_msgs": {"best_score": np.float64(0.7), "best_ckpt": "best_mIoU.pth"}}
    loaded = load_model(save(tmp_path / "best_mIoU_iter_9.pth", state, meta))
    assert same(loaded, state)
    assert loaded.spec.classes == NAMED


class Payload:
    """Unpickled in full, it makes the file `path` through whatever it is called with."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.made = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


def test_stand_ins_run_nothing(state: State, history_buffer: type, tmp_path: Path) -> None:
    """Neither what a stand-in is given, nor a function that it would have looked up, is called."""
    target = tmp_path / "owned"
    command = f"touch '{target}'"
    hub = history_buffer()
    hub.hook = Payload(os.system, command)
    for index, payload in enumerate((hub, Payload(getattr, Payload(os.system, command), "x"))):
        path = tmp_path / f"{index}.pth"
        torch.save({"state_dict": state, "message_hub": {"x": payload}}, path)
        message = refusal(lambda path=path: load_model(str(path)))  # type: ignore[misc]
        assert "would run posix.system" in message or "would run nt.system" in message
        assert not target.exists()
    torch.save({"state_dict": state, "x": Payload(getattr, history_buffer, "min")}, tmp_path / "looked_up.pth")
    assert same(load_model(str(tmp_path / "looked_up.pth")), state)
    assert not any("system" in name or "eval" in name or "exec" in name or "import" in name for name in NAMES)


@pytest.mark.parametrize("container", ["model", "model_state_dict", "state_dict", "net", "network_weights"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net._orig_mod.", "base_model.model.", "model.module."])
def test_containers_and_prefixes(container: str, prefix: str, state: State, tmp_path: Path) -> None:
    inside = {prefix + key: value for key, value in state.items()}
    content = {container: inside, "epoch": 3, "optimizer": {"state": {}}}
    assert same(load_model(write(tmp_path / "a.pth", content)), state)


def test_lightning_with_a_loss_of_its_own(state: State, tmp_path: Path) -> None:
    inside = {f"model.{key}": value for key, value in state.items()} | {"criterion.weight": torch.ones(CLASSES)}
    content = {"epoch": 3, "pytorch-lightning_version": "2.4.0", "state_dict": inside,
               "hyper_parameters": {"root": Path("/data"), "lr": 1e-4}}  # fmt: skip
    loaded = load_model(write(tmp_path / "epoch=3.ckpt", content))
    assert same(loaded, state)
    assert any("criterion.weight" in remark for remark in loaded.remarks)


def test_a_network_cut_short_is_not_hidden_by_a_prefix(state: State, tmp_path: Path) -> None:
    inside = {f"model.{key}": value for key, value in state.items() if key != HEAD} | {HEAD: state[HEAD]}
    assert HEAD in refusal(lambda: load_model(write(tmp_path / "a.pth", {"state_dict": inside})))


def ema_buffers(averages: State) -> State:
    return {f"ema_{key.replace('.', '_')}": value for key, value in averages.items() if "running" not in key}


@pytest.mark.parametrize("kind", ["timm", "swa", "lightning", "mmcv", "mmcv by epoch", "mmengine"])
def test_averaged_weights_are_taken_and_said(kind: str, state: State, averaged: State, tmp_path: Path) -> None:
    module = {f"module.{key}": value for key, value in averaged.items()}
    raw = {f"module.{key}": value for key, value in state.items()} | {"steps": torch.tensor(9)}
    content: dict[str, dict[str, Any]] = {
        "timm": {"state_dict": state, "state_dict_ema": averaged, "epoch": 3},
        "swa": {"model_state_dict": state, "ema_state_dict": module | {"n_averaged": torch.tensor(9)}},
        "lightning": {"state_dict": {f"model.{k}": v for k, v in state.items()}
                      | {f"ema_model.module.{k}": v for k, v in averaged.items()}},
        "mmcv": {"state_dict": state | ema_buffers(averaged),
                 "meta": {"config": "runner = dict(type='IterBasedRunner')"}},
        "mmcv by epoch": {"state_dict": averaged | ema_buffers(state),
                          "meta": {"config": "runner = dict(type='EpochBasedRunner')"}},
        "mmengine": {"state_dict": averaged, "ema_state_dict": raw, "message_hub": {}},
    }  # fmt: skip
    loaded = load_model(write(tmp_path / "a.pth", content[kind]))
    assert same(loaded, averaged)
    assert any("averaged (EMA) weights" in remark for remark in loaded.remarks)


def test_adapters_have_to_be_merged(state: State, tmp_path: Path) -> None:
    key = "decode_head.fusion_conv.conv"
    inside = {f"base_model.model.{name.replace(key, f'{key}.base_layer')}": value for name, value in state.items()}
    inside[f"base_model.model.{key}.lora_A.default.weight"] = torch.ones(2, 2)
    message = refusal(lambda: load_model(write(tmp_path / "a.pth", inside)))
    assert "lora_A" in message


@pytest.mark.parametrize("form", ["fp16 variant", "bf16", "sharded variant", "two variants"])
def test_weights_of_a_folder(form: str, tmp_path: Path) -> None:
    model = huggingface_model(hidden_sizes=[16, 32, 40, 64], num_attention_heads=[1, 2, 5, 4], depths=[1, 1, 1, 1])
    dtype = torch.bfloat16 if form == "bf16" else torch.float16
    model.to(dtype).save_pretrained(tmp_path)
    whole = tmp_path / "model.safetensors"
    tensors = load_file(whole)
    if form == "fp16 variant":
        whole.rename(tmp_path / "model.fp16.safetensors")
    elif form == "two variants":
        save_file(tensors, tmp_path / "model.fp32.safetensors")
        whole.rename(tmp_path / "model.fp16.safetensors")
        assert "model.fp16.safetensors, model.fp32.safetensors" in refusal(lambda: load_model(str(tmp_path)))
        return
    elif form == "sharded variant":
        whole.unlink()
        names = sorted(tensors)
        parts = {
            "model.fp16-00001-of-00002.safetensors": names[::2],
            "model.fp16-00002-of-00002.safetensors": names[1::2],
        }
        for file, keys in parts.items():
            save_file({key: tensors[key] for key in keys}, tmp_path / file)
        index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
        (tmp_path / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    loaded = load_model(str(tmp_path)).module.state_dict()
    assert torch.equal(loaded["head.classify.bias"], model.state_dict()["decode_head.classifier.bias"].float())


def test_the_error_names_the_nearest_layout(state: State, tmp_path: Path) -> None:
    other = {key.replace("fusion_conv", "fuse"): value for key, value in state.items()} | {"neck.scale": torch.ones(1)}
    message = refusal(lambda: load_model(save(tmp_path / "a.pth", other)))
    assert "nearest mmsegmentation SegFormer" in message
    assert "without decode_head.fusion_conv.*" in message
    assert "neck.scale" in message
    broken = {key: value for key, value in state.items() if key != HEAD} | {"decode_head.odd": torch.ones(1)}
    broken["decode_head.conv_seg.weight2"] = state[HEAD]
    message = refusal(lambda: load_model(save(tmp_path / "b.pth", broken)))
    assert HEAD in message
