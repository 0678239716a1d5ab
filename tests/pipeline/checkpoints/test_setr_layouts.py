"""Both published SETR layouts: full-resolution parity with a second reading of them, and strictness.

The references below run on raw tensors under the published key names, in float64, through PyTorch's functional
building blocks, up to the last upsampling; nothing of `pipeline` takes part in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engines.errors import DeployError
from pipeline.checkpoints import setr_fudan, setr_mmseg

DIM, DEPTH, HEADS, CLASSES, SIDE = 128, 8, 2, 7, 4
TAPS = (1, 3, 5, 7)  # four equal groups of eight blocks
LAYOUTS: dict[str, ModuleType] = {"fudan": setr_fudan, "mmseg": setr_mmseg}
CASES = [(layout, decoder) for layout in LAYOUTS for decoder in ("naive", "pup", "mla")]
State = dict[str, Tensor]


class Maker:
    """Random tensors under published names, scaled so that signals keep their size through the layers."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def tensor(self, name: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> None:
        self.state[name] = torch.randn(shape, generator=self.random) * scale + shift

    def linear(self, name: str, out: int, *fan: int, bias: bool = True, joint: str = ".") -> None:
        self.tensor(f"{name}{joint}weight", out, *fan, scale=torch.Size(fan).numel() ** -0.5)
        if bias:
            self.tensor(f"{name}{joint}bias", out, scale=0.3)

    def norm(self, name: str, width: int) -> None:
        self.tensor(f"{name}.weight", width, scale=0.3, shift=1.0)
        self.tensor(f"{name}.bias", width, scale=0.3)

    def batch_norm(self, name: str, width: int) -> None:
        self.norm(name, width)
        self.tensor(f"{name}.running_mean", width, scale=0.3)
        self.state[f"{name}.running_var"] = torch.rand(width, generator=self.random) + 0.5
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(40000)


def fudan_state(decoder: str, dim: int = DIM, depth: int = DEPTH, side: int = SIDE, kernel: int = 1) -> State:
    make = Maker(1)
    make.tensor("backbone.cls_token", 1, 1, dim)
    make.tensor("backbone.pos_embed", 1, side * side + 1, dim)
    make.linear("backbone.patch_embed.proj", dim, 3, 16, 16)
    for block in (f"backbone.blocks.{i}" for i in range(depth)):
        make.norm(f"{block}.norm1", dim)
        make.linear(f"{block}.attn.qkv", 3 * dim, dim)
        make.linear(f"{block}.attn.proj", dim, dim)
        make.norm(f"{block}.norm2", dim)
        make.linear(f"{block}.mlp.fc1", 4 * dim, dim)
        make.linear(f"{block}.mlp.fc2", dim, 4 * dim)
    make.linear("decode_head.conv_seg", CLASSES, 512, 1, 1)  # mmseg's base class makes it, SETR never calls it
    make.linear("auxiliary_head.0.conv_0", 256, dim, 1, 1)
    if decoder == "mla":
        for level in range(4):
            make.norm(f"backbone.norm_{level}", dim)
            for name, fan in ((f"backbone.mla.mla_p{level + 2}_1x1", (dim, 1, 1)),
                              (f"backbone.mla.mla_p{level + 2}", (256, 3, 3))):  # fmt: skip
                make.linear(f"{name}.0", 256, *fan, bias=False)
                make.batch_norm(f"{name}.1", 256)
            for conv, width in ((0, 256), (3, 128)):
                make.linear(f"decode_head.mlahead.head{level + 2}.{conv}", 128, width, 3, 3, bias=False)
                make.batch_norm(f"decode_head.mlahead.head{level + 2}.{conv + 1}", 128)
        make.linear("decode_head.cls", CLASSES, 512, 3, 3)
        return make.state
    make.norm("decode_head.norm", dim)
    stages, kernel = (4, 3) if decoder == "pup" else (1, kernel)
    for stage in range(stages):
        make.linear(f"decode_head.conv_{stage}", 256, 256 if stage else dim, kernel, kernel)
        make.batch_norm(f"decode_head.syncbn_fc_{stage}", 256)
    make.linear(f"decode_head.conv_{stages}", CLASSES, 256, 1, 1)
    return make.state


def mmseg_state(decoder: str, dim: int = DIM, depth: int = DEPTH, side: int = SIDE, kernel: int = 1) -> State:
    make = Maker(2)
    make.tensor("backbone.cls_token", 1, 1, dim)
    make.tensor("backbone.pos_embed", 1, side * side + 1, dim)
    make.linear("backbone.patch_embed.projection", dim, 3, 16, 16)
    for layer in (f"backbone.layers.{i}" for i in range(depth)):
        make.norm(f"{layer}.ln1", dim)
        make.linear(f"{layer}.attn.attn.in_proj", 3 * dim, dim, joint="_")
        make.linear(f"{layer}.attn.attn.out_proj", dim, dim)
        make.norm(f"{layer}.ln2", dim)
        make.linear(f"{layer}.ffn.layers.0.0", 4 * dim, dim)
        make.linear(f"{layer}.ffn.layers.1", dim, 4 * dim)
    make.linear("auxiliary_head.0.conv_seg", CLASSES, 256, 1, 1)
    convs: list[tuple[str, int, int, int]] = []  # name, out, in, kernel
    if decoder == "mla":
        for i in range(4):
            make.norm(f"neck.norm.{i}", dim)
            convs += [(f"neck.mla.channel_proj.{i}", 256, dim, 1), (f"neck.mla.feat_extract.{i}", 256, 256, 3)]
            convs += [(f"decode_head.up_convs.{i}.{j}", 128, 128 if j else 256, 3) for j in range(2)]
    else:
        make.norm("decode_head.norm", dim)
        stages, kernel = (4, 3) if decoder == "pup" else (1, kernel)
        convs += [(f"decode_head.up_convs.{i}.0", 256, 256 if i else dim, kernel) for i in range(stages)]
    for name, out, width, size in convs:
        make.linear(f"{name}.conv", out, width, size, size, bias=False)
        make.batch_norm(f"{name}.bn", out)
    make.linear("decode_head.conv_seg", CLASSES, 512 if decoder == "mla" else 256, 1, 1)
    return make.state


STATES: dict[str, Callable[..., State]] = {"fudan": fudan_state, "mmseg": mmseg_state}


def up(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def layer_norm(s: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)


def conv_bn_relu(s: State, conv: str, bn: str, x: Tensor) -> Tensor:
    weight = s[f"{conv}.weight"]
    x = F.conv2d(x, weight, s.get(f"{conv}.bias"), padding="same")
    stats = (s[f"{bn}.running_mean"], s[f"{bn}.running_var"], s[f"{bn}.weight"], s[f"{bn}.bias"])
    return F.relu(F.batch_norm(x, *stats, training=False, eps=1e-5))


def fudan_encode(s: State, image: Tensor, class_token: bool) -> list[Tensor]:
    """Tokens after every block, class token (if used) still in place."""
    patches = F.conv2d(image, s["backbone.patch_embed.proj.weight"], s["backbone.patch_embed.proj.bias"], stride=16)
    rows, columns = patches.shape[2:]
    position = s["backbone.pos_embed"]
    grid = position[:, 1:].permute(0, 2, 1).view(1, DIM, SIDE, SIDE)
    x = (patches + up(grid, (rows, columns))).flatten(2).mT
    if class_token:
        token = s["backbone.cls_token"] + position[:, :1]
        x = torch.cat([token.repeat(len(x), 1, 1), x], 1)
    outs = []
    for i in range(DEPTH):
        p = f"backbone.blocks.{i}"
        qkv = F.linear(layer_norm(s, f"{p}.norm1", x), s[f"{p}.attn.qkv.weight"], s[f"{p}.attn.qkv.bias"])
        q, k, v = qkv.view(*qkv.shape[:2], 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, s[f"{p}.attn.proj.weight"], s[f"{p}.attn.proj.bias"])
        hidden = F.linear(layer_norm(s, f"{p}.norm2", x), s[f"{p}.mlp.fc1.weight"], s[f"{p}.mlp.fc1.bias"])
        x = x + F.linear(F.gelu(hidden), s[f"{p}.mlp.fc2.weight"], s[f"{p}.mlp.fc2.bias"])
        outs.append(x)
    return outs


def mmseg_encode(s: State, image: Tensor, class_token: bool) -> list[Tensor]:
    """As `fudan_encode`; attention through PyTorch's own multi-head attention, which mmcv wraps."""
    proj = "backbone.patch_embed.projection"
    patches = F.conv2d(image, s[f"{proj}.weight"], s[f"{proj}.bias"], stride=16)
    position = s["backbone.pos_embed"]
    grid = up(position[:, 1:].mT.reshape(1, DIM, SIDE, SIDE), (patches.shape[2], patches.shape[3]))
    x = torch.cat([s["backbone.cls_token"].repeat(len(image), 1, 1), patches.flatten(2).mT], 1)
    x = x + torch.cat([position[:, :1], grid.flatten(2).mT], 1)
    x = x if class_token else x[:, 1:]
    outs = []
    for i in range(DEPTH):
        p = f"backbone.layers.{i}"
        y = layer_norm(s, f"{p}.ln1", x).transpose(0, 1)
        y, _ = F.multi_head_attention_forward(
            y, y, y, DIM, HEADS, s[f"{p}.attn.attn.in_proj_weight"], s[f"{p}.attn.attn.in_proj_bias"], None, None,
            False, 0.0, s[f"{p}.attn.attn.out_proj.weight"], s[f"{p}.attn.attn.out_proj.bias"], training=False,
        )  # fmt: skip
        x = x + y.transpose(0, 1)
        y = F.linear(layer_norm(s, f"{p}.ln2", x), s[f"{p}.ffn.layers.0.0.weight"], s[f"{p}.ffn.layers.0.0.bias"])
        x = x + F.linear(F.gelu(y), s[f"{p}.ffn.layers.1.weight"], s[f"{p}.ffn.layers.1.bias"])
        outs.append(x)
    return outs


def as_map(tokens: Tensor, image: Tensor) -> Tensor:
    return tokens.mT.reshape(len(tokens), -1, image.shape[2] // 16, image.shape[3] // 16)


def twice(x: Tensor) -> tuple[int, int]:
    return 2 * x.shape[2], 2 * x.shape[3]


def fudan_reference(decoder: str, s: State, image: Tensor) -> Tensor:
    full = (image.shape[2], image.shape[3])
    if decoder != "mla":
        x = as_map(layer_norm(s, "decode_head.norm", fudan_encode(s, image, True)[-1][:, 1:]), image)
        for i in range(4 if decoder == "pup" else 1):
            x = conv_bn_relu(s, f"decode_head.conv_{i}", f"decode_head.syncbn_fc_{i}", x)
            if decoder == "pup" and i < 3:
                x = up(x, twice(x))
        last = "decode_head.conv_4" if decoder == "pup" else "decode_head.conv_1"
        return up(F.conv2d(x, s[f"{last}.weight"], s[f"{last}.bias"]), full)
    outs = fudan_encode(s, image, False)
    path: Tensor | float = 0.0
    heads: list[Tensor] = []
    for level in (3, 2, 1, 0):
        x = as_map(layer_norm(s, f"backbone.norm_{level}", outs[TAPS[level]]), image)
        p = f"backbone.mla.mla_p{level + 2}"
        path = conv_bn_relu(s, f"{p}_1x1.0", f"{p}_1x1.1", x) + path
        x = conv_bn_relu(s, f"{p}.0", f"{p}.1", path)
        for conv in (0, 3):
            h = f"decode_head.mlahead.head{level + 2}"
            x = conv_bn_relu(s, f"{h}.{conv}", f"{h}.{conv + 1}", x)
        heads.insert(0, up(x, (4 * x.shape[2], 4 * x.shape[3]), align_corners=True))
    x = torch.cat(heads, 1)
    return up(F.conv2d(x, s["decode_head.cls.weight"], s["decode_head.cls.bias"], padding=1), full)


def mmseg_reference(decoder: str, s: State, image: Tensor) -> Tensor:
    full = (image.shape[2], image.shape[3])
    outs = mmseg_encode(s, image, decoder != "mla")
    if decoder == "mla":
        inputs = [as_map(layer_norm(s, f"neck.norm.{i}", outs[TAPS[i]]), image) for i in range(4)]
        projected = [
            conv_bn_relu(s, f"neck.mla.channel_proj.{i}.conv", f"neck.mla.channel_proj.{i}.bn", inputs[i])
            for i in range(4)
        ]
        ups = []
        for i in range(4):  # deepest first from here on: the sum of the i + 1 deepest projections
            p = f"neck.mla.feat_extract.{i}"
            x = conv_bn_relu(s, f"{p}.conv", f"{p}.bn", torch.stack(projected[3 - i :]).sum(0))
            for j in range(2):
                p = f"decode_head.up_convs.{i}.{j}"
                x = conv_bn_relu(s, f"{p}.conv", f"{p}.bn", x)
            ups.append(up(x, (4 * x.shape[2], 4 * x.shape[3])))
        x = torch.cat(ups, 1)
    else:
        x = as_map(layer_norm(s, "decode_head.norm", outs[-1][:, 1:]), image)
        for i in range(4 if decoder == "pup" else 1):
            p = f"decode_head.up_convs.{i}.0"
            x = conv_bn_relu(s, f"{p}.conv", f"{p}.bn", x)
            x = up(x, twice(x) if decoder == "pup" else (4 * x.shape[2], 4 * x.shape[3]))
    # `whole` and `slide` both resize the head's output to the crop; for PUP it already has that size.
    return up(F.conv2d(x, s["decode_head.conv_seg.weight"], s["decode_head.conv_seg.bias"]), full)


REFERENCES = {"fudan": fudan_reference, "mmseg": mmseg_reference}


def doubled(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


@pytest.mark.parametrize("window", [(64, 64), (96, 64)], ids=["trained", "resized"])
@pytest.mark.parametrize(("layout", "decoder"), CASES)
def test_full_resolution_parity(layout: str, decoder: str, window: tuple[int, int]) -> None:
    state = STATES[layout](decoder)
    image = torch.randn(2, 3, *window, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parsed = LAYOUTS[layout].load(dict(state), window)
    stride = {"naive": {"fudan": 16, "mmseg": 4}[layout], "pup": 2, "mla": 4}[decoder]
    assert (parsed.architecture, parsed.variant) == ("setr", f"{decoder}-custom")
    assert parsed.logits_stride == stride
    assert not parsed.module.training
    with torch.no_grad():
        reference = REFERENCES[layout](decoder, doubled(state), image)
        logits = parsed.module.double()(image)
    assert logits.shape == (2, CLASSES, window[0] // stride, window[1] // stride)
    assert reference.std() > 0.3  # a comparison of zeros would say nothing
    # Same float32 weights, both in float64: what remains is the position grid, resized in float32 at load.
    tolerance = 1e-11 if window == (64, 64) else 1e-6
    assert (up(logits, window) - reference).abs().max() < tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
def test_naive_with_3x3_convolution(layout: str) -> None:
    state = STATES[layout]("naive", kernel=3)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = LAYOUTS[layout].load(dict(state), (64, 64)).module.double()(image)
        reference = REFERENCES[layout]("naive", doubled(state), image)
    assert (up(logits, (64, 64)) - reference).abs().max() < 1e-11


@pytest.mark.parametrize(("layout", "decoder"), CASES)
def test_exactly_one_layout_matches(layout: str, decoder: str) -> None:
    keys = frozenset(STATES[layout](decoder, dim=64, depth=4))
    assert [name for name, module in LAYOUTS.items() if module.matches(keys)] == [layout]
    encoder_only = frozenset(key for key in keys if key.startswith("backbone."))
    assert not any(module.matches(encoder_only) for module in LAYOUTS.values())


# In each decoder one tensor of the encoder, one that a reader splits or resizes, and one of the head.
VICTIMS = {
    "fudan": {
        "naive": "decode_head.conv_0.bias",
        "pup": "decode_head.syncbn_fc_2.running_var",
        "mla": "backbone.mla.mla_p4_1x1.0.weight",
        "qkv": "backbone.blocks.3.attn.qkv.bias",
        "encoder": "backbone.blocks.2.mlp.fc1.weight",
    },
    "mmseg": {
        "naive": "decode_head.norm.bias",
        "pup": "decode_head.up_convs.2.0.bn.running_var",
        "mla": "neck.mla.feat_extract.2.conv.weight",
        "qkv": "backbone.layers.3.attn.attn.in_proj_bias",
        "encoder": "backbone.layers.2.ffn.layers.0.0.weight",
    },
}
BROKEN = [
    (layout, decoder, key)
    for layout, decoder in CASES
    for key in (VICTIMS[layout][decoder], VICTIMS[layout]["qkv"], VICTIMS[layout]["encoder"], "backbone.pos_embed")
]


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
@pytest.mark.parametrize(("layout", "decoder", "key"), BROKEN)
def test_damaged_tensor_is_named(layout: str, decoder: str, key: str, damage: str) -> None:
    state = STATES[layout](decoder, dim=64, depth=4)
    if damage == "missing":
        del state[key]
    elif damage == "shape":
        state[key] = torch.cat([state[key], state[key][:1]])
    else:
        state[key].view(-1)[-1] = float("nan")
    with pytest.raises(DeployError, match=re.escape(key)):
        LAYOUTS[layout].load(state, (64, 64))


@pytest.mark.parametrize(
    "key", ["backbone.norm.weight", "decode_head.conv_9.weight", "neck.other", "backbone.ln1.bias"]
)
@pytest.mark.parametrize(("layout", "decoder"), CASES)
def test_unknown_tensor_is_named(layout: str, decoder: str, key: str) -> None:
    state = STATES[layout](decoder, dim=64, depth=4)
    state[key] = torch.zeros(64)
    with pytest.raises(DeployError, match=re.escape(key)):
        LAYOUTS[layout].load(state, (64, 64))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_class_token_is_needed_unless_mla_drops_it(layout: str) -> None:
    for decoder in ("naive", "pup", "mla"):
        state = STATES[layout](decoder, dim=64, depth=4)
        del state["backbone.cls_token"]
        if decoder == "mla":
            LAYOUTS[layout].load(state, (64, 64))
        else:
            with pytest.raises(DeployError, match=r"backbone\.cls_token"):
                LAYOUTS[layout].load(state, (64, 64))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_no_published_setr_has_is_refused(layout: str) -> None:
    load, make = LAYOUTS[layout].load, STATES[layout]
    with pytest.raises(DeployError, match=r"backbone\.dist_token"):
        load({**make("naive", dim=64, depth=4), "backbone.dist_token": torch.zeros(1, 1, 64)}, (64, 64))
    with pytest.raises(DeployError, match="window: got 64x72, expected multiples of 16"):
        load(make("naive", dim=64, depth=4), (64, 72))
    with pytest.raises(DeployError, match="got 6 encoder blocks, expected a multiple of 4"):
        load(make("mla", dim=64, depth=6), (64, 64))
    state = make("naive", dim=64, depth=4)
    state["backbone.pos_embed"] = torch.zeros(1, 1 + 15, 64)
    with pytest.raises(DeployError, match="position embedding: got 15 patches"):
        load(state, (64, 64))


def test_mmseg_refuses_a_number_of_convolutions_it_cannot_place() -> None:
    state = mmseg_state("pup", dim=64, depth=4)
    state = {key: tensor for key, tensor in state.items() if "up_convs.2" not in key and "up_convs.3" not in key}
    with pytest.raises(DeployError, match=r"got 2 convolutions in decode_head.up_convs, expected 1 \(Naive\) or 4"):
        setr_mmseg.load(state, (64, 64))
