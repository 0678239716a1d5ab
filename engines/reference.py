"""What the backends that others are compared with have in common: fp32, on the CPU."""

from __future__ import annotations

import platform

from engines.base import Backend


class Reference(Backend):
    """A base of backends, see `engines.base.Backend`."""

    def device(self) -> str:
        return f"cpu {platform.machine()}"

    def supports(self, precision: str) -> str | None:
        return None if precision == "fp32" else f"the reference computes in fp32 only, not {precision}"

    def remark(self, precision: str) -> str | None:
        return None
