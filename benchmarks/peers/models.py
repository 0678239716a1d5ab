"""The networks that are compared, and how each contestant gets the same weights of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch costs seconds and memory: only who needs a module imports it
    from torch import nn

ROOT = Path(__file__).parent.parent.parent

# Arguments of build-engine that a precision needs for a model without its own: {calib} is a folder of rendered scenes.
# On random weights many classes are nearly tied, so that lower precisions may flip more labels than the gate allows;
# the benchmark reports how many, so the gate is opened there.
OPEN_GATE = ("--max-error", "10", "--min-agreement", "0")
BUILD_ARGUMENTS: dict[str, tuple[str, ...]] = {"int8": ("--calib", "{calib}")}


@dataclass(frozen=True)
class PeerModel:
    """window, stride: pixels.  source: what build-engine reads; {work} is the folder of exported files.

    hub: whether transformers has it.  trained: whether its labels mean anything on rendered scenes.
    """

    name: str
    title: str
    window: int
    stride: int
    source: str
    hub: bool = True
    trained: bool = False

    def build_arguments(self, precision: str, work: Path, calib: Path) -> list[str]:
        """The words after ``build-engine`` except output and threads."""
        size = ["--tile", str(self.window), "--stride", str(self.stride), "--precision", precision]
        extra = [word.format(calib=calib) for word in BUILD_ARGUMENTS.get(precision, ())]
        if not self.trained and precision != "fp32":
            extra += OPEN_GATE
        return [self.source.format(work=work), *size, *extra]


MODELS = {
    model.name: model
    for model in (
        PeerModel("b0", "SegFormer-B0", 1024, 768, str(ROOT / "pipeline/demo/model"), trained=True),
        PeerModel("b2", "SegFormer-B2", 1024, 768, "{work}/hub"),
        PeerModel("setr-pup", "SETR-PUP, ViT-Small", 768, 512, "benchmarks.peers.models:setr_pup", hub=False),
    )
}


def torch_module(model: PeerModel, work: Path) -> nn.Module:
    """The network in evaluation mode, fp32: window (1, 3, H, W) -> logits (1, K, h, w)."""
    import torch
    from torch import nn

    if not model.hub:
        return setr_pup()
    from transformers import SegformerForSemanticSegmentation

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            folder = model.source.format(work=work)
            self.model = SegformerForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(x).logits
            return logits

    return Logits().eval().requires_grad_(False)


def save_hub(model: PeerModel, work: Path) -> None:
    """Random weights as a Hugging Face folder, where `model` is not a trained one."""
    if model.hub and not model.trained:
        import torch
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        torch.manual_seed(0)
        names = {index: f"class_{index}" for index in range(19)}
        config = SegformerConfig(
            depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768,
            num_labels=19, id2label=names, label2id={name: index for index, name in names.items()},
        )  # fmt: skip
        network = SegformerForSemanticSegmentation(config).eval()
        spread(network)
        torch.nn.init.normal_(network.decode_head.classifier.weight, std=0.5)  # logits as spread as a trained model's
        network.save_pretrained(model.source.format(work=work))


def setr_pup() -> nn.Module:
    """SETR-PUP at 768 x 768 with 19 classes: mmsegmentation's layout, seeded random weights.

    On ViT-Small (DeiT, arXiv 2012.12877: width 384, depth 12) and 128 channels in the decoder: about 130 GMAC a window,
    which a CPU of two cores finishes in seconds.  The published one, on ViT-Large, needs ten times as much.
    """
    import torch

    from pipeline.models.setr import SETR, SETRConfig
    from pipeline.models.vit import ViTConfig

    torch.manual_seed(0)
    dim, depth = 384, 12
    vit = ViTConfig((768, 768), dim, depth, 4 * dim, (depth - 1,))
    network = (
        SETR(SETRConfig(vit, "pup", 19, channels=128, stages=4, kernel=3, conv_bias=False)).eval().requires_grad_(False)
    )
    spread(network)
    torch.nn.init.normal_(network.head.classify.weight, std=0.5)
    return network


def tiny() -> nn.Module:
    """A SegFormer with almost no arithmetic and 19 classes: what surrounds the engine costs what it costs for B5."""
    import torch

    from pipeline.models.segformer import SegFormer, SegFormerConfig

    torch.manual_seed(0)
    config = SegFormerConfig(dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), mlp_ratios=(1, 1, 1, 1),
                             decoder_dim=16)  # fmt: skip
    return SegFormer(config).eval().requires_grad_(False)


def spread(network: nn.Module) -> None:
    """Batch statistics as training leaves them, not the initial 0 and 1, which would let folding go untested."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.uniform_(-1, 1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
