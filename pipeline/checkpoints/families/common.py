"""What families share: the folder that one reads, and transformers' networks with every weight in its place.

A family is a module with ``NAME: str``, ``TYPES: tuple[str, ...]``, ``matches(config) -> bool`` and
``load(source: FolderSource) -> Network``; `registry` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from engines.errors import DeployError
from engines.files import refuse_pointer
from pipeline.checkpoints.common import check_finite, some
from pipeline.checkpoints.folder import weights_file, weights_files

# In a checkpoint, and no part of inference; or made anew with every model.
_UNUSED = ("auxiliary_head.", "criterion.", "text_mapper.", "model.text_mapper.")
_DERIVED = ("relative_position_index", "position_ids", "num_batches_tracked")


@dataclass(frozen=True)
class FolderSource:
    """A folder, what its config.json says, and the (H, W) that the network will be run at."""

    folder: Path
    config: Mapping[str, Any]
    window: tuple[int, int]

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type"))


@dataclass(frozen=True)
class Network:
    """module: (N, channels, H, W) float32, normalised -> (N, K, h, w).  architecture: its name.

    fields: of a `ModelSpec`, of preprocessing; None: the folder's own processor says them.  remarks: for the user.
    """

    module: nn.Module
    architecture: str
    fields: Mapping[str, Any] | None = None
    remarks: tuple[str, ...] = ()
    channels: int = 3


class Family(Protocol):
    """A family of networks: one Python module each.  TYPES: what its folders call themselves."""

    NAME: str
    TYPES: tuple[str, ...]

    def matches(self, config: Mapping[str, Any], /) -> bool:
        """Whether a folder with this config.json is one of the family; exactly one family may say so."""

    def load(self, source: FolderSource, /) -> Network:
        """The network for windows of that size.  Raises DeployError."""


def transformers() -> ModuleType:
    """The library.  Raises DeployError where it is not installed."""
    try:
        import transformers as library
    except ImportError as error:
        raise DeployError(
            "transformers: not installed, and it computes this folder's network; pip install 'edgeseg[huggingface]'"
        ) from error
    return library


def pretrained(source: FolderSource, automatic: str, change: Callable[[Any], None] | None = None) -> nn.Module:
    """The folder's network in eval mode, float32, every parameter from the file and every tensor of it in its place.

    automatic: the class of transformers that chooses by model_type.  change: what to set in its config before.
    No code in the folder is run.  Raises DeployError.
    """
    library = transformers()
    from huggingface_hub.errors import StrictDataclassError

    for path in weights_files(source.folder):
        if path.is_file():
            refuse_pointer(path, "weights")
    variant = weights_file(source.folder).name.split(".")[1]
    options: dict[str, Any] = {"variant": None if variant in ("safetensors", "bin") else variant}
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet(library):
            config = library.AutoConfig.from_pretrained(source.folder, **local)
            if change is not None:
                change(config)
            module, report = getattr(library, automatic).from_pretrained(
                source.folder, config=config, dtype=torch.float32, attn_implementation="eager",
                output_loading_info=True, **local, **options,
            )  # fmt: skip
    except (
        OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, StrictDataclassError
    ) as error:  # fmt: skip
        line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
        raise DeployError(f"{source.folder}: transformers cannot read it: {line[:200]}; check the folder") from error
    missing = _relevant(report["missing_keys"])
    left_over = _relevant(report["unexpected_keys"])
    if missing or left_over:
        parts = [f"no tensor for {some(missing)}"] * bool(missing) + [f"left over {some(left_over)}"] * bool(left_over)
        raise DeployError(
            f"{source.folder}: as {type(module).__name__}: got {', and '.join(parts)}; "
            "expected a checkpoint that was fine-tuned for segmentation, complete"
        )
    for name, parameter in module.named_parameters():
        check_finite(parameter, name)
    loaded: nn.Module = module.eval().requires_grad_(False)
    return loaded


class LowResolution(nn.Module):
    """The map that `inner` returns, before its last step where that is the very resize that the runtime does.

    That is a bilinear resize to the window with half-pixel centres: there it is left out, and anything else stays.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with _Resizes() as seen:
            result: Tensor = self.inner(x)
        before = next((before for before, after in seen.resizes if after is result), result)
        return before if result.shape[2:] == x.shape[2:] else result


class _Resizes(TorchFunctionMode):
    """Remembers every bilinear resize to a given size with half-pixel centres: what went in, and what came out."""

    def __init__(self) -> None:
        super().__init__()
        self.resizes: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is interpolate:
            said = dict(zip(("input", "size", "scale_factor", "mode", "align_corners"), args, strict=False)) | kwargs
            half_pixel = said.get("mode") == "bilinear" and not said.get("align_corners")
            if half_pixel and said.get("size") is not None and not said.get("antialias"):
                self.resizes.append((said["input"], result))
        return result


def _relevant(keys: Any) -> list[str]:
    return sorted(key for key in keys if not key.startswith(_UNUSED) and not key.endswith(_DERIVED))


@contextmanager
def _quiet(library: ModuleType) -> Iterator[None]:
    """Neither progress bars nor advice: what matters is in the report."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
