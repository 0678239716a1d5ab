"""The differences between the packages that share this code, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engines.contract import TensorRTOptions
from engines.errors import DeployError

Sm = tuple[int, int]
_OFF = {
    "--version-compatible": "--no-version-compatible",
    "--hardware": "--hardware exact",
    "--strip-weights": "--no-strip-weights",
}


@dataclass(frozen=True)
class Flavour:
    """module: the package.  title: for people.  install: the command that gets it.

    ahead: kernels are compiled ahead of time for compute capabilities instead of timed on the GPU at hand.  Building
    then needs no GPU, an engine belongs to compute capabilities and not to a model of GPU, and a timing cache has
    nothing to keep.  TensorRT-RTX documents engines as never compatible between its releases.
    """

    module: str
    title: str
    install: str
    ahead: bool = False

    def targets(self, sdk: Any, sm: Sm | None, options: TensorRTOptions) -> tuple[str, ...]:
        """Names of the compute capabilities to compile for: this GPU's, or all from Ampere on where there is none or
        `--hardware ampere_plus` asks for it.  () where the SDK builds for the GPU at hand.

        Turing is left to a GPU of its own: NVIDIA's support matrix says that including it slows all others down.
        """
        if not self.ahead:
            return ()
        known = {name: sm_of(name) for name in dir(sdk.ComputeCapability) if name[:2] == "SM" and name[2:].isdigit()}
        if sm is not None and options.hardware != "ampere_plus":
            return tuple(name for name, capability in known.items() if capability == sm)
        return tuple(sorted((name for name in known if known[name] >= (8, 0)), key=sm_of))

    def without(self, sdk: Any, sm: Sm) -> str | None:
        """None where engines can be compiled for `sm`, otherwise why not."""
        if not self.ahead or self.targets(sdk, sm, TensorRTOptions()):
            return None
        offered = ", ".join(f"{a}.{b}" for a, b in map(sm_of, self.targets(sdk, None, TensorRTOptions())))
        return (
            f"{self.title} {sdk.__version__} has no kernels for compute capability {sm[0]}.{sm[1]} (it has 7.5, "
            f"{offered}); use --backend tensorrt"
        )

    def refuse(self, options: TensorRTOptions, on_gpu: bool) -> None:
        """Raises DeployError for what this package cannot do whatever its version.  on_gpu: there is one to use."""
        if self.ahead and options.strip_weights and not on_gpu:
            raise DeployError(
                f"--strip-weights: {self.title} builds refittable engines on a GPU alone; here, "
                f"{do_without('--strip-weights')}"
            )
        if self.ahead and options.strip_weights and options.hardware != "exact":
            raise DeployError(
                f"--strip-weights with --hardware {options.hardware}: {self.title} builds refittable engines for one "
                f"compute capability at a time; {do_without('--strip-weights')}, or --hardware exact"
            )
        if self.ahead and options.version_compatible:
            raise DeployError(
                f"--version-compatible: {self.title} engines run in the release that built them alone; "
                f"{do_without('--version-compatible')}"
            )


def do_without(flag: str) -> str:
    """How to do without `flag`, also where a rebuild takes it from the bundle and there is nothing to leave out."""
    off = _OFF.get(flag.split()[0])
    return "leave it out" if off is None else f"leave it out, or {off} where it is the bundle's"


def sm_of(name: str) -> Sm:
    """``SM120`` -> (12, 0)."""
    return int(name[2:-1]), int(name[-1])
