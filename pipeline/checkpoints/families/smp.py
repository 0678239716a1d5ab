"""Folders of segmentation_models_pytorch, whose ``save_pretrained`` writes the class's name into config.json.

Unet, UnetPlusPlus, MAnet, Linknet, FPN, PSPNet, PAN, DeepLabV3, DeepLabV3Plus, UPerNet, Segformer and DPT,
with any encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from engines.errors import DeployError
from engines.spec import MAX_BANDS
from pipeline.checkpoints.common import check_finite
from pipeline.checkpoints.families.common import FolderSource, Network
from pipeline.checkpoints.files import fill
from pipeline.checkpoints.folder import read_folder
from pipeline.checkpoints.probe import passed_on

NAME = "segmentation_models_pytorch"
TYPES: tuple[str, ...] = ("a folder of segmentation_models_pytorch",)
_NAMED = "_model_class"


def matches(config: Mapping[str, Any]) -> bool:
    return _NAMED in config


def load(source: FolderSource) -> Network:
    """Its logits: an activation at its end is left out.  Nothing is downloaded.  Raises DeployError."""
    library = _library()
    known = {kind.__name__: kind for kind in library.MODEL_ARCHITECTURES_MAPPING.values()}
    name = source.config[_NAMED]
    if name not in known:
        raise DeployError(f"{source.folder}: {_NAMED}: got {name!r}, expected one of {', '.join(sorted(known))}")
    channels = source.config.get("in_channels", 3)
    if type(channels) is not int or not 1 <= channels <= MAX_BANDS:
        raise DeployError(f"{source.folder}: in_channels: got {channels!r}, expected 1 to {MAX_BANDS}")
    said = {key: value for key, value in source.config.items() if not key.startswith("_")}
    try:
        module = known[name](**(said | {"encoder_weights": None, "activation": None}))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeployError(f"{source.folder}: {name} of {NAME} refuses its config.json: {line[:200]}") from error
    expected = frozenset(module.state_dict())
    state, _ = read_folder(source.folder, lambda keys: keys >= expected)
    fill(module, state, source.folder)
    for key, parameter in module.named_parameters():
        check_finite(parameter, key)
    fields, remarks = _preprocessing(library, source.config)
    activation = source.config.get("activation")
    if activation is not None:
        remarks += (f"its activation, {activation}, is left out: the logits before it are used",)
    return Network(_FirstOutput(module.float().eval().requires_grad_(False)), name, fields, remarks, channels=channels)


def _library() -> ModuleType:
    try:
        import segmentation_models_pytorch as library
    except ImportError as error:
        raise DeployError(
            f"{NAME}: not installed, and it computes this folder's network; pip install 'edgeseg[smp]'"
        ) from error
    found: ModuleType = library
    return found


def _preprocessing(library: ModuleType, config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What timm says its encoder was trained with, on the 0..255 scale; of others it stands on the network alone."""
    encoder, channels = str(config.get("encoder_name", "resnet34")), config.get("in_channels", 3)
    if channels != 3:
        return {"mean": (0.0,) * channels, "std": (255.0,) * channels}, (passed_on(channels),)
    try:
        said = library.encoders.get_preprocessing_params(encoder) if encoder.startswith("tu-") else None
    except ValueError:  # an encoder that was never trained
        said = None
    if said is None:
        return {}, (f"the folder does not say how {encoder} is fed; assumed: mean and std of ImageNet, RGB",)
    mean, std = (tuple(round(255.0 * value, 10) for value in said[name]) for name in ("mean", "std"))
    fields = {"mean": mean, "std": std, "channel_order": said["input_space"]}
    return fields, (f"mean and std are those that timm's {encoder.removeprefix('tu-')} was trained with",)


class _FirstOutput(nn.Module):
    """Without what a classification head beside the decoder answers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        answer = self.inner(x)
        logits: Tensor = answer[0] if isinstance(answer, tuple) else answer
        return logits
