"""Checkpoints as other people's training code leaves them: does each build, and give its own library's labels?

usage: python -m benchmarks.strangers [NAME...]

Each case makes a network of a library with random weights, saves it as that library (or the training code that people
use with it) does, builds it as a user would, and compares one window with the library's own module.  Labels count where
its two best scores differ by 1e-3 of the largest.  What is not installed is left out and said.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from calib.data.scenes import render_bands
from engines.errors import DeployError
from engines.segmenter import open_segmenter
from engines.tiling.placement import Tiling
from pipeline.build import build_bundle
from pipeline.checkpoints.sources import SourceOptions
from pipeline.checkpoints.user import pick_logits
from pipeline.request import BuildRequest

NEAR_TIE = 1e-3
NN = "monai.networks.nets"
SMP = "segmentation_models_pytorch"


@dataclass(frozen=True)
class Stranger:
    """model, weights, arguments: as on the command line.  own: the library's module.  what: how it was saved."""

    what: str
    model: str
    own: nn.Module
    weights: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tile: int = 128


def _random(module: nn.Module) -> nn.Module:
    """Statistics of a network that was trained on something, so that none can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif name.endswith(("running_mean", "bias")) and tensor.dtype == torch.float32:
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def _made(model: str, **arguments: Any) -> nn.Module:
    import importlib

    module, _, name = model.partition(":")
    torch.manual_seed(0)
    return _random(getattr(importlib.import_module(module), name)(**arguments))


def _by_factory(
    what: str, model: str, file: Path, saved: Callable[[nn.Module], Any], tile: int = 128, **arguments: Any
) -> Stranger:  # fmt: skip
    own = _made(model, **arguments)
    torch.save(saved(own), file)
    return Stranger(what, model, own, weights=file, arguments=arguments, tile=tile)


def smp_folder(folder: Path) -> Stranger:
    own = _made(f"{SMP}:Unet", encoder_name="resnet18", encoder_weights=None, classes=6)
    own.save_pretrained(folder / "unet")  # type: ignore[operator]
    return Stranger("save_pretrained", str(folder / "unet"), own)


def smp_four_bands(folder: Path) -> Stranger:
    own = _made(f"{SMP}:DeepLabV3Plus", encoder_name="mobilenet_v2", encoder_weights=None, classes=5, in_channels=4)
    own.save_pretrained(folder / "deeplab")  # type: ignore[operator]
    return Stranger("save_pretrained, in_channels=4", str(folder / "deeplab"), own)


def smp_in_lightning(folder: Path) -> Stranger:
    """A LightningModule that holds the network, a loss with weights and metrics, saved by the Trainer itself."""
    import lightning
    import torchmetrics

    arguments = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 4}
    own = _made(f"{SMP}:FPN", **arguments)

    class Task(lightning.LightningModule):
        def __init__(self, lr: float, folder: Path) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = own
            self.loss = nn.CrossEntropyLoss(torch.ones(4))
            self.iou = torchmetrics.JaccardIndex("multiclass", num_classes=4)

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            scores: Tensor = self.model(batch)
            return self.loss(scores, scores.argmax(1))  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.model.parameters(), 0.0)

    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                                default_root_dir=folder, enable_model_summary=False)  # fmt: skip
    batches: Any = torch.utils.data.DataLoader(torch.rand(2, 3, 64, 64), batch_size=2)  # type: ignore[arg-type]
    trainer.fit(Task(1e-3, folder), batches)
    trainer.save_checkpoint(folder / "last.ckpt")
    return Stranger("Trainer.save_checkpoint", f"{SMP}:FPN", own.eval(), folder / "last.ckpt", arguments)


def smp_averaged(folder: Path) -> Stranger:
    average = torch.optim.swa_utils.AveragedModel
    return _by_factory(
        "AveragedModel.state_dict()", f"{SMP}:Linknet", folder / "swa.pt", lambda own: average(own).state_dict(),
        encoder_name="resnet18", encoder_weights=None, classes=1,
    )  # fmt: skip


def torchvision_reference(folder: Path) -> Stranger:
    """As references/segmentation/train.py does."""

    def saved(own: nn.Module) -> dict[str, Any]:
        optimizer = torch.optim.SGD(own.parameters(), 0.02, 0.9)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 10)
        return {"model": own.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(),
                "epoch": 29, "args": argparse.Namespace(data_path=Path("/data"), device="cuda", amp=False)}  # fmt: skip

    return _by_factory("references/train.py", "torchvision.models.segmentation:lraspp_mobilenet_v3_large",
                       folder / "model_29.pth", saved, num_classes=5, weights_backbone=None)  # fmt: skip


def torchvision_distributed(folder: Path) -> Stranger:
    """Compiled, then in DistributedDataParallel: both leave a prefix."""
    return _by_factory("DDP of a compiled module", "torchvision.models.segmentation:deeplabv3_mobilenet_v3_large",
                       folder / "checkpoint.pt", lambda own: {
                           "state_dict": {f"module._orig_mod.{key}": value for key, value in own.state_dict().items()},
                           "best_iou": np.float64(0.61)},
                       num_classes=7, weights_backbone=None, aux_loss=True)  # fmt: skip


def torchvision_pickled(folder: Path) -> Stranger:
    """The module itself, which is code: to be refused."""
    return _by_factory("torch.save(model)", "torchvision.models.segmentation:fcn_resnet50", folder / "model.pt",
                       lambda own: own, num_classes=5, weights_backbone=None)  # fmt: skip


def monai_unet(folder: Path) -> Stranger:
    return _by_factory("CheckpointSaver's {net, opt}", f"{NN}:UNet", folder / "net_key_metric=0.91.pt",
                       lambda own: {"net": own.state_dict(), "opt": torch.optim.Adam(own.parameters()).state_dict()},
                       spatial_dims=2, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=(2, 2),
                       num_res_units=2)  # fmt: skip


def monai_swin_unetr(folder: Path) -> Stranger:
    return _by_factory("state_dict()", f"{NN}:SwinUNETR", folder / "best_metric_model.pth", nn.Module.state_dict,
                       in_channels=4, out_channels=3, feature_size=12, spatial_dims=2)  # fmt: skip


def nnunet_network(classes: int = 4) -> nn.Module:
    """As nnU-Net v2 makes it of its plans, for two input channels; one answer, as at inference."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        2, 4, (8, 16, 32, 64), nn.Conv2d, 3, (1, 2, 2, 2), (2, 2, 2, 2), classes, (2, 2, 2), conv_bias=True,
        norm_op=nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )  # fmt: skip


def nnunet(folder: Path) -> Stranger:
    """As nnUNetTrainer.save_checkpoint does."""
    plans = {
        "plans_name": "nnUNetPlans",
        "foreground_intensity_properties_per_channel": {"0": {"mean": np.float64(90)}},
    }
    return _by_factory("checkpoint_final.pth", "benchmarks.strangers:nnunet_network", folder / "checkpoint_final.pth",
                       lambda own: {
                           "network_weights": own.state_dict(), "optimizer_state": {}, "grad_scaler_state": None,
                           "logging": {"mean_fg_dice": [np.float32(0.8)]}, "_best_ema": np.float32(1),
                           "current_epoch": 1000, "trainer_name": "nnUNetTrainer",
                           "init_args": {"plans": plans, "fold": 0, "device": torch.device("cuda")},
                           "inference_allowed_mirroring_axes": (0, 1)}, classes=4)  # fmt: skip


def timm_saver(folder: Path) -> Stranger:
    """A head on a backbone of timm, saved by timm's CheckpointSaver, with averaged weights beside the raw ones."""
    from timm.utils import CheckpointSaver, ModelEmaV3

    own = _made("benchmarks.strangers:timm_network", classes=5)
    raw = timm_network(classes=5)
    saver = CheckpointSaver(
        raw, torch.optim.SGD(raw.parameters(), 0.1), args=argparse.Namespace(model="x", lr=1.0),
        model_ema=ModelEmaV3(own), checkpoint_dir=str(folder), recovery_dir=str(folder),
    )  # fmt: skip
    saver.save_checkpoint(3, metric=0.5)
    return Stranger("timm.utils.CheckpointSaver, EMA", "benchmarks.strangers:timm_network", own,
                    folder / "checkpoint-3.pth.tar", {"classes": 5})  # fmt: skip


def timm_network(classes: int) -> nn.Module:
    import timm

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model("convnext_atto", features_only=True, out_indices=(1, 3))
            low, high = self.backbone.feature_info.channels()
            self.head = nn.Conv2d(low + high, classes, 1)

        def forward(self, x: Tensor) -> Tensor:
            low, high = self.backbone(x)
            return self.head(torch.cat([low, interpolate(high, low.shape[2:], mode="bilinear")], 1))  # type: ignore[no-any-return]

    return Network()


def transformers_trainer(folder: Path) -> Stranger:
    """A folder checkpoint-N as transformers' Trainer leaves it, with its own files beside the model's."""
    import transformers

    torch.manual_seed(0)
    config = transformers.UperNetConfig(
        backbone_config=transformers.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64],
                                                    out_features=["stage1", "stage2", "stage3", "stage4"]),
        hidden_size=16, auxiliary_channels=16, num_labels=6)  # fmt: skip
    own = _random(transformers.UperNetForSemanticSegmentation(config))
    own.save_pretrained(folder / "checkpoint-500")  # type: ignore[operator]
    torch.save(argparse.Namespace(lr=1), folder / "checkpoint-500" / "training_args.bin")
    torch.save({"state": {}}, folder / "checkpoint-500" / "optimizer.pt")
    return Stranger("Trainer's checkpoint-500", str(folder / "checkpoint-500"), own)


def segformer_in_lightning(folder: Path) -> Stranger:
    """transformers' SegFormer inside of a LightningModule, as tutorials train it: names only, no config."""
    import transformers

    torch.manual_seed(0)
    config = transformers.SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 160, 256], num_labels=6)
    own = _random(transformers.SegformerForSemanticSegmentation(config))
    state = {f"model.{key}": value for key, value in own.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.6.0", "hyper_parameters": {"lr": 1e-4},
                "callbacks": {"ModelCheckpoint": {"best_model_path": "x"}}}, folder / "epoch=3.ckpt")  # fmt: skip
    return Stranger("Lightning, of transformers' SegFormer", str(folder / "epoch=3.ckpt"), own)


def fastai_learner(folder: Path) -> Stranger:
    """As Learner.save does: {model, opt}."""
    return _by_factory("Learner.save", f"{SMP}:PSPNet", folder / "stage-1.pth",
                       lambda own: {"model": own.state_dict(), "opt": {"state": [], "hypers": []}},
                       encoder_name="resnet18", encoder_weights=None, classes=4)  # fmt: skip


def torchscript(folder: Path) -> Stranger:
    """An archive of code: to be refused."""
    own = _made(f"{SMP}:Unet", encoder_name="resnet18", encoder_weights=None, classes=3)
    torch.jit.trace(own, torch.zeros(1, 3, 64, 64)).save(str(folder / "model.pt"))  # type: ignore[no-untyped-call]
    return Stranger("torch.jit.save", str(folder / "model.pt"), own)


CASES = {each.__name__: each for each in (
    smp_folder, smp_four_bands, smp_in_lightning, smp_averaged, torchvision_reference, torchvision_distributed,
    torchvision_pickled, monai_unet, monai_swin_unetr, nnunet, timm_saver, transformers_trainer, segformer_in_lightning,
    fastai_learner, torchscript,
)}  # fmt: skip


def _importable() -> None:
    """torchvision's wheel beside a PyTorch for CPUs alone has no operators, and misses two when it is imported."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    names = parser.parse_args().names or list(CASES)
    _importable()
    print("| checkpoint | as saved by | result | labels | logits, relative |\n|---|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                stranger = CASES[name](Path(folder))
            except ImportError as error:
                print(f"| {name} | | not tried: {error} | | |", flush=True)
                continue
            print(f"| {name} | {stranger.what} | {_result(stranger, Path(folder))} |", flush=True)


def _result(stranger: Stranger, folder: Path) -> str:
    tiling = Tiling(stranger.tile, window_w=stranger.tile, stride_h=stranger.tile, stride_w=stranger.tile)
    options = SourceOptions(weights=stranger.weights, arguments=stranger.arguments)
    request = BuildRequest(stranger.model, folder / "b", tiling, options=options)
    try:
        manifest = build_bundle(request, lambda step, text: None)
    except DeployError as error:
        return f"{str(error).replace(str(folder), '')} | |"
    with open_segmenter(folder / "b") as (segmenter, _), torch.inference_mode():
        window = segmenter.first_window(render_bands(3, stranger.tile, stranger.tile, len(manifest.spec.mean)))[
            :1
        ].copy()
        mine = torch.from_numpy(segmenter.session.run(window).copy())
        own = pick_logits(stranger.own(torch.from_numpy(window))).float()
    mine = interpolate(mine, own.shape[2:], mode="bilinear") if mine.shape != own.shape else mine
    error = float((mine - own).abs().max() / own.abs().max())
    if own.shape[1] == 1:
        same, margin = (mine > 0) == (own > 0), own.abs()
    else:
        ranked = own.sort(1).values
        same, margin = mine.argmax(1) == own.argmax(1), ranked[:, -1] - ranked[:, -2]
    clear = margin > NEAR_TIE * own.abs().max()
    return f"builds | {100 * same[clear].float().mean():.3f} % of {100 * clear.float().mean():.0f} % | {error:.1e}"


if __name__ == "__main__":
    main()
