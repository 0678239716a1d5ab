"""Exact rewrites that serve NVIDIA's compiler: the same function in fewer bytes moved, not in fewer multiply-adds.

One rule a file, as in `pipeline.graph.rewrites`.  A CPU would not gain by them, so that they are for GPU backends alone
(`pipeline.precision.forms` decides).  Tensors that keep their values, in whatever order, keep their names.
"""

from __future__ import annotations

from types import ModuleType

from pipeline.graph.forms import (
    linear_from_map,
    linear_to_map,
    norm_on_map,
    norm_on_shared_map,
    pointwise_on_map,
    query_bias,
    split_queries,
)

# The order matters: what tokens went through is done to the map before the Linear after it is looked at, and what a
# Linear made into tokens is a map before the normalisation after it is.
FORMS: tuple[ModuleType, ...] = (
    linear_to_map, pointwise_on_map, linear_from_map, norm_on_map, norm_on_shared_map, split_queries, query_bias,
)  # fmt: skip
# Those that pay on every network that was tried.  The others need a compiler that says so.
UNASKED = frozenset(FORMS) - {norm_on_shared_map, query_bias, split_queries}
