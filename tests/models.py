"""Small models with seeded random weights, also reachable from the command line as ``tests.models:<name>``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.models.segformer import SegFormer, SegFormerConfig
from pipeline.models.setr import SETR, SETRConfig, mla_taps
from pipeline.models.vit import ViTConfig

TINY = SegFormerConfig(
    classes=5, dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2), decoder_dim=32
)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and BatchNorm statistics far from their initial values, so that no term can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.dtype == torch.float32:
            spread = 0.2 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
            noise = spread * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise + 1 if name.endswith("norm.weight") else noise)
    return module.eval()


def tiny() -> nn.Module:
    return randomise(SegFormer(TINY))


def tiny_conv_head() -> nn.Module:
    """With mmsegmentation's decoder."""
    return randomise(SegFormer(replace(TINY, head="conv")))


def tiny_pup() -> nn.Module:
    """For windows of 64x96 pixels."""
    vit = ViTConfig((64, 96), 64, 2, 128, (1,))
    return randomise(SETR(SETRConfig(vit, "pup", classes=5, channels=16, stages=4, kernel=3)))


def tiny_mla() -> nn.Module:
    """For windows of 64x96 pixels."""
    vit = ViTConfig((64, 96), 64, 4, 128, mla_taps(4), class_token=False)
    return randomise(SETR(SETRConfig(vit, "mla", classes=5, channels=16, head_channels=8, upsample=4)))


class _Dict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = tiny()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"aux": x.mean(), "logits": self.model(x)}


def tiny_dict() -> nn.Module:
    """Answers with a dict, as torchvision and Hugging Face models do."""
    return _Dict()


class _Tuple(_Dict):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = self.model(x)
        return logits, logits.mean()


def tiny_tuple() -> nn.Module:
    return _Tuple()


def nan_weights() -> nn.Module:
    model = tiny()
    model.head.classify.weight.data[0, 0] = torch.nan
    return model


class _DataDependent(_Dict):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.model(x) if x.sum() > 0 else self.model(-x)


def data_dependent() -> nn.Module:
    """A Python branch on a tensor's value: cannot be captured in a graph."""
    return _DataDependent()


def other() -> nn.Module:
    """The same architecture with other weights."""
    return randomise(SegFormer(TINY), seed=1)


def overflow() -> nn.Module:
    """`tiny` with activations beyond 1e5 inside one block, and the same answer: what FP16 cannot hold."""
    model = randomise(SegFormer(TINY))
    ffn = model.stages[1].blocks[0].ffn  # type: ignore[union-attr,index]
    with torch.no_grad():
        for parameter in (ffn.fc1.weight, ffn.fc1.bias):
            parameter.mul_(2.0**16)
        ffn.dwconv.weight.abs_()  # GELU is then linear or zero at these magnitudes, and fc2 undoes the scale
        ffn.fc2.weight.mul_(2.0**-16)
    return model


def one_class() -> nn.Module:
    """`tiny`, which answers its third class to everything."""
    model = randomise(SegFormer(TINY))
    with torch.no_grad():
        model.head.classify.bias[2] += 20  # type: ignore[index,operator]
    return model


def tiny_setr() -> nn.Module:
    """A two-layer SETR Naive for windows of 64 x 64."""
    from pipeline.models.setr import SETR, SETRConfig
    from pipeline.models.vit import ViTConfig

    return randomise(SETR(SETRConfig(ViTConfig((64, 64), 128, 2, 256, (1,)), "naive")))


def tiny_transformers() -> nn.Module:
    """transformers' own SegFormer, which answers with a struct, reduced to its logits."""
    import transformers

    config = transformers.SegformerConfig(
        num_labels=5, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2], decoder_hidden_size=32,
    )  # fmt: skip
    return _Logits(randomise(transformers.SegformerForSemanticSegmentation(config)))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits
