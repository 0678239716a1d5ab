"""What the backends that others are compared with have in common: fp32, on the CPU."""

from __future__ import annotations

import platform

from engines.contract import Backend, BuildConfig
from engines.errors import DeployError


class Reference(Backend):
    """A base of backends, see `engines.contract.Backend`."""

    def device(self) -> str:
        return f"cpu {platform.machine()}"

    def supports(self, precision: str) -> str | None:
        return None if precision == "fp32" else f"the reference computes in fp32 only, not {precision}"

    def require_one_window(self, config: BuildConfig) -> None:
        """Raises DeployError for a larger batch: what others are compared with runs as it came, window by window."""
        if config.batch != 1:
            raise DeployError(
                f"backend {self.name}: the reference takes 1 window at a time, got --batch {config.batch}; use "
                "--batch 1, or --backend openvino"
            )

    def remark(self, precision: str) -> str | None:
        return None
