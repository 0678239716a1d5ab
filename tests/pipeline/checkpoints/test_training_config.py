"""Constants that only the config in a checkpoint holds: used, or refused, or said to be assumed.

The references run on raw tensors in float64 with PyTorch's functional building blocks, as the published code computes;
nothing of `pipeline` takes part in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.errors import DeployError
from pipeline.checkpoints import load_model, setr_fudan, setr_mmseg
from pipeline.checkpoints.training_config import TrainingConfig, read_config
from tests.pipeline.checkpoints import published
from tests.pipeline.checkpoints import test_setr_layouts as setr
from tests.pipeline.checkpoints.published import refusal, save

SetrState = setr.State
IMAGE = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def config_of(text: str) -> TrainingConfig:
    config = read_config({"config": text})
    assert config.found
    return config


def vit(extra: str = "", head: str = "", rest: str = "") -> str:
    """A config of mmsegmentation with everything as the published one has it, but for what is given."""
    backbone = {"img_size": "(64, 64)", "num_heads": "2", "norm_cfg": "dict(type='LN', eps=1e-6)",
                "interpolate_mode": "'bilinear'", "out_indices": "(1, 3, 5, 7)"}  # fmt: skip
    decoder = {"in_index": "3", "up_scale": "4", "align_corners": "False", "norm_cfg": "dict(type='SyncBN')"}
    for said, given in ((backbone, extra), (decoder, head)):
        said |= dict(part.split("=", 1) for part in filter(None, given.split("; ")))
    text = ["norm_cfg = dict(type='SyncBN', requires_grad=True)", "model = dict("]
    text += [f"    backbone=dict(type='VisionTransformer', {', '.join(f'{k}={v}' for k, v in backbone.items())}),"]
    text += [f"    decode_head=dict(type='SETRUPHead', {', '.join(f'{k}={v}' for k, v in decoder.items())}),"]
    return "\n".join([*text, "    test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(32, 32)))", rest])


def up_head(s: SetrState, tokens: Tensor, image: Tensor, *, scale: int, stages: int, align: bool) -> Tensor:
    """mmsegmentation's SETRUPHead, and the resize of its logits to the crop."""
    x = setr.as_map(setr.layer_norm(s, "decode_head.norm", tokens), image)
    for i in range(stages):
        p = f"decode_head.up_convs.{i}.0"
        x = setr.conv_bn_relu(s, f"{p}.conv", f"{p}.bn", x)
        x = setr.up(x, (scale * x.shape[2], scale * x.shape[3]), align)
    x = torch.nn.functional.conv2d(x, s["decode_head.conv_seg.weight"], s["decode_head.conv_seg.bias"])
    return setr.up(x, (image.shape[2], image.shape[3]), align)


def loaded_logits(
    load: Any, state: SetrState, window: tuple[int, int], config: TrainingConfig, image: Tensor
) -> Tensor:
    parsed = load(dict(state), window, config)
    logits = parsed.module.double()(image)
    assert logits.shape[2] == window[0] // parsed.logits_stride
    return setr.up(logits, window)


SETR_CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "published": ("", "", {}),
    "aligned corners": ("", "align_corners=True", {"align": True}),
    "up_scale 2": ("", "up_scale=2", {"scale": 2}),
    "up_scale 16 fills the crop": ("", "up_scale=16", {"scale": 16}),
    "up_scale 16, aligned": ("", "up_scale=16; align_corners=True", {"scale": 16, "align": True}),
    "another block": ("", "in_index=1", {"tap": 3}),
    "out_indices": ("out_indices=(0, 2, 4, 6)", "", {"tap": 6}),
    "no class token": ("with_cls_token=False", "", {"token": False}),
    "narrow heads": ("num_heads=4", "", {"heads": 4}),
    "eps": ("norm_cfg=dict(type='LN', eps=0.1)", "norm_layer=dict(type='LN', eps=1e-6)", {"eps": 0.1}),
    "eps of LN": ("norm_cfg=dict(type='LN')", "norm_layer=dict(type='LN', eps=1e-6)", {"eps": 1e-5}),
}


@pytest.mark.parametrize("case", SETR_CASES)
def test_constants_of_setr_are_used(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, head, said = SETR_CASES[case]
    state = setr.mmseg_state("naive")
    if "eps" in said:  # where variances are of the order of eps
        first = ("patch_embed.projection.weight", "patch_embed.projection.bias", "pos_embed", "cls_token")
        state |= {f"backbone.{key}": 1e-2 * state[f"backbone.{key}"] for key in first}
    doubled = setr.doubled(state)
    monkeypatch.setattr(setr, "HEADS", said.get("heads", 2))
    original = setr.layer_norm

    def layer_norm(s: SetrState, name: str, x: Tensor) -> Tensor:
        if not name.startswith("backbone") or "eps" not in said:
            return original(s, name, x)
        return torch.nn.functional.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], said["eps"])

    monkeypatch.setattr(setr, "layer_norm", layer_norm)
    token = said.get("token", True)
    tokens = setr.mmseg_encode(doubled, IMAGE, token)[said.get("tap", 7)][:, int(token) :]
    reference = up_head(doubled, tokens, IMAGE, scale=said.get("scale", 4), stages=1, align=said.get("align", False))
    logits = loaded_logits(setr_mmseg.load, state, (64, 64), config_of(vit(backbone, head)), IMAGE)
    assert (logits - reference).abs().max() < 1e-10
    if case != "published":
        monkeypatch.undo()
        published_logits = loaded_logits(setr_mmseg.load, state, (64, 64), TrainingConfig(), IMAGE)
        assert (published_logits - reference).abs().max() > 1e-4  # what would come out without the config


@pytest.mark.parametrize("align", [False, True])
def test_pup_with_another_scale(align: bool) -> None:
    """Two convolutions, each x4, fill the crop; without a config nothing says so, and the file is refused."""
    state = {key: value for key, value in setr.mmseg_state("pup").items() if not key.startswith(
        ("decode_head.up_convs.2", "decode_head.up_convs.3"))}  # fmt: skip
    doubled = setr.doubled(state)
    tokens = setr.mmseg_encode(doubled, IMAGE, True)[7][:, 1:]
    reference = up_head(doubled, tokens, IMAGE, scale=4, stages=2, align=align)
    config = config_of(vit("", f"num_convs=2; align_corners={align}"))
    assert (loaded_logits(setr_mmseg.load, state, (64, 64), config, IMAGE) - reference).abs().max() < 1e-10
    with pytest.raises(DeployError, match="got 2 convolutions"):
        setr_mmseg.load(dict(state), (64, 64), TrainingConfig())


def test_mla_with_aligned_corners() -> None:
    state = setr.mmseg_state("mla")
    doubled = setr.doubled(state)
    original = setr.up

    def aligned(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
        return original(x, size, True)

    with pytest.MonkeyPatch.context() as patch:  # no position grid is resized: the window is the trained one
        patch.setattr(setr, "up", aligned)
        reference = setr.mmseg_reference("mla", doubled, IMAGE)
    config = config_of(vit("with_cls_token=False", "in_index=(0, 1, 2, 3); align_corners=True"))
    assert (loaded_logits(setr_mmseg.load, state, (64, 64), config, IMAGE) - reference).abs().max() < 1e-10


@pytest.mark.parametrize("with_config", [False, True])
def test_positions_are_kept_where_their_count_fits_the_window(with_config: bool) -> None:
    """Trained on 32x128: 2 x 8 patches, whose number is a square."""
    state = setr.mmseg_state("naive")
    image = torch.randn(1, 3, 32, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    doubled = setr.doubled(state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setr, "up", lambda x, size, align=False: x.reshape(*x.shape[:2], *size))
        tokens = setr.mmseg_encode(doubled, image, True)[7][:, 1:]
    reference = up_head(doubled, tokens, image, scale=4, stages=1, align=False)
    config = config_of(vit("img_size=(32, 128)")) if with_config else TrainingConfig()
    assert (loaded_logits(setr_mmseg.load, state, (32, 128), config, image) - reference).abs().max() < 1e-10


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_positions_of_another_window_come_from_the_trained_grid(mode: str) -> None:
    state = setr.mmseg_state("naive")
    position = state["backbone.pos_embed"]
    module = setr_mmseg.load(
        dict(state), (64, 128), config_of(vit(f"img_size=(32, 128); interpolate_mode='{mode}'"))
    ).module
    grid = position[:, 1:].mT.reshape(1, -1, 2, 8)
    expected = torch.nn.functional.interpolate(grid, size=(4, 8), mode=mode, align_corners=False)
    got = module.get_parameter("encoder.position")[:, 1:]
    assert torch.allclose(got, expected.flatten(2).mT, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_fudans_naive_may_resize_twice(layers: int) -> None:
    state = setr.fudan_state("naive")
    doubled = setr.doubled(state)
    x = setr.as_map(
        setr.layer_norm(doubled, "decode_head.norm", setr.fudan_encode(doubled, IMAGE, True)[5][:, 1:]), IMAGE
    )
    x = setr.conv_bn_relu(doubled, "decode_head.conv_0", "decode_head.syncbn_fc_0", x)
    x = setr.up(x, (16, 16)) if layers == 2 else x
    last = doubled["decode_head.conv_1.weight"], doubled["decode_head.conv_1.bias"]
    reference = setr.up(torch.nn.functional.conv2d(x, *last), (64, 64))
    text = f"model = dict(backbone=dict(num_heads=2), decode_head=dict(in_index=5, num_upsampe_layer={layers}))"
    logits = loaded_logits(setr_fudan.load, state, (64, 64), config_of(text), IMAGE)
    assert (logits - reference).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("backbone", "head", "message"),
    [
        ("final_norm=True", "", "backbone.final_norm: got True, expected False"),
        ("output_cls_token=True", "", "backbone.output_cls_token: got True"),
        ("act_cfg=dict(type='ReLU')", "", "backbone.act_cfg.type: got 'ReLU'"),
        ("num_heads=3", "", "backbone.num_heads: got 3, expected a divisor of 128"),
        ("", "up_scale=3", "got upsampling by 3 in all"),
        ("", "up_scale=open('/etc/passwd').read()", "decode_head.up_scale: got an expression that is no plain value"),
        ("", "align_corners='yes'", "decode_head.align_corners: got 'yes', expected True or False"),
        ("", "in_index=9", "got decode_head.in_index 9"),
    ],
)
def test_what_this_setr_cannot_do_is_refused(backbone: str, head: str, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", setr.mmseg_state("naive"), {"cfg": vit(backbone, head)})
    assert message in refusal(lambda: load_model(path, window=(64, 64)))


def segformer(head: str, backbone: str = "", rest: str = "") -> dict[str, str]:
    text = f"model = dict(backbone=dict(type='MixVisionTransformer', {backbone}), decode_head=dict({head}))\n{rest}"
    return {"config": text}


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_mmsegmentations_segformer_with_aligned_corners(mode: str, tmp_path: Path) -> None:
    """Against the decoder written out on the encoder's own features."""
    state = published.mmseg_state()
    meta = segformer(f"align_corners=True, interpolate_mode='{mode}'")
    model: Any = load_model(save(tmp_path / "a.pth", state, meta), window=(64, 96)).module
    image = published.picture()
    features: list[Tensor] = []
    x = image
    for stage in model.stages:
        x = stage(x)
        features.append(x)
    resize = torch.nn.functional.interpolate
    maps = [setr.conv_bn_relu(state, f"decode_head.convs.{i}.conv", f"decode_head.convs.{i}.bn", f) for i, f in
            enumerate(features)]  # fmt: skip
    maps = [resize(f, size=(16, 24), mode=mode, align_corners=True) for f in maps]
    x = setr.conv_bn_relu(state, "decode_head.fusion_conv.conv", "decode_head.fusion_conv.bn", torch.cat(maps, 1))
    x = torch.nn.functional.conv2d(x, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])
    reference = resize(x, size=(64, 96), mode="bilinear", align_corners=True)
    assert (model(image) - reference).abs().max() < 1e-4 * reference.abs().max()


def test_segformers_of_other_widths_and_depths(tmp_path: Path) -> None:
    """As transformers computes them: widths, depths, reductions and expansion are in the tensors, heads are assumed."""
    shape = {"hidden_sizes": [16, 32, 80, 128], "depths": [1, 2, 1, 1], "num_attention_heads": [1, 2, 5, 8],
             "sr_ratios": [4, 2, 2, 1], "mlp_ratios": [2, 2, 3, 4], "decoder_hidden_size": 24}  # fmt: skip
    model = published.huggingface_model(**shape)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) and not ("patch_embeddings" in name or "sequence_reduction" in name):
            module.eps = 1e-6  # NVlabs'
    loaded = load_model(save(tmp_path / "a.pth", published.nvlabs_state(model)))
    with torch.no_grad():
        expected = model(published.picture()).logits
        assert torch.allclose(loaded.module(published.picture()), expected, atol=1e-4 * expected.abs().max())
    assert loaded.spec.variant == "custom"
    assert any("num_heads 1/2/5/8" in remark for remark in loaded.remarks)


def test_what_the_file_does_not_say_is_said_to_be_assumed(tmp_path: Path) -> None:
    bare = load_model(save(tmp_path / "a.pth", setr.mmseg_state("naive")), window=(96, 64))
    (remark,) = [remark for remark in bare.remarks if "assumed" in remark]
    for said in (
        "decode_head.up_scale 4",
        "decode_head.align_corners False",
        "a square grid of position",
        "mean and std",
    ):
        assert said in remark, remark
    config = vit(rest="data_preprocessor = dict(mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True)")
    told = save(tmp_path / "b.pth", setr.mmseg_state("naive"), {"cfg": config})
    assert not load_model(told, window=(64, 64)).remarks


@pytest.mark.parametrize(
    ("rest", "mean", "order"),
    [
        ("img_norm_cfg = dict(mean=[1.5, 2, 3], std=[4, 5, 6], to_rgb=True)", (1.5, 2, 3), "RGB"),
        ("test_pipeline = [dict(type='MultiScaleFlipAug', transforms=[dict(type='Normalize', mean=[1.5, 2, 3], "
         "std=[4, 5, 6], to_rgb=False)])]", (1.5, 2, 3), "BGR"),
        ("data_preprocessor = dict(type='SegDataPreProcessor', mean=[1.5, 2, 3], std=[4, 5, 6], bgr_to_rgb=True)",
         (1.5, 2, 3), "RGB"),
        ("m = [1.5, 2, 3]\ns = [4, 5, 6]\nimg_norm_cfg = dict(**{'mean': m, 'std': s})", (1.5, 2, 3), "RGB"),
        ("data_preprocessor = dict(type='SegDataPreProcessor', bgr_to_rgb=True)", (0, 0, 0), "RGB"),
    ],
)  # fmt: skip
def test_preprocessing_is_the_training_configs(rest: str, mean: tuple[float, ...], order: str, tmp_path: Path) -> None:
    spec = load_model(save(tmp_path / "a.pth", published.mmseg_state(), segformer("", rest=rest))).spec
    assert (spec.mean, spec.channel_order) == (mean, order)
    assert spec.std == ((4, 5, 6) if any(mean) else (1, 1, 1))


def test_a_config_is_never_run(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    text = f"import os\nos.system(\"touch '{target}'\")\nx = open('{target}', 'a').close()\n" + vit()
    load_model(save(tmp_path / "a.pth", setr.mmseg_state("naive"), {"cfg": text}), window=(64, 64))
    assert not target.exists()
    exec(compile(text, "config", "exec"), {})  # the same text does run: the test is not vacuous
    assert target.exists()


@pytest.mark.parametrize("text", ["model = dict(", "model = 3", "(" * 10000, "x = 9**9**9", "", "\0"])
def test_a_text_that_is_no_config_is_as_none(text: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", published.mmseg_state(), {"config": text})
    assert any("assumed" in remark for remark in load_model(path).remarks)


def test_names_that_the_user_gives_override_those_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", published.mmseg_state(), {"CLASSES": ("a", "b"), "PALETTE": [[1, 2, 3]]})
    assert "--classes" in refusal(lambda: load_model(path))
    assert len(load_model(path, named=True).spec.classes) == published.CLASSES
