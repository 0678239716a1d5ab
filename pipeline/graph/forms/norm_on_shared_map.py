"""As `norm_on_map`, of normalisations whose map several nodes read: SegFormer's at the end of a stage.

Apart, because it pays where all of them read a map, and does not where one is the decoder's tail, which takes each
pixel's channels together, as tokens have them.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graph.forms.norm_on_map import written_out
from pipeline.graph.surgery import Outcome

NAME = "layer normalisation on a map that several read"


def rewrite(model: ir.Model) -> Outcome:
    return written_out(model, shared=True)
