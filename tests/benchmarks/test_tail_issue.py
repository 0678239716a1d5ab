"""The tail's machine code: that its loops are still what they were written to be, and are found."""

from __future__ import annotations

import pytest

from benchmarks import tail_issue
from engines.errors import DeployError
from engines.tiling.tail import TailShape
from tests.engines.gpu.cubins import Cubins


@pytest.fixture(scope="module")
def listing(cubins: Cubins) -> str:
    try:
        tail_issue.nvdisasm()
    except DeployError as error:
        pytest.skip(str(error))
    return tail_issue.listing(cubins((8, 7)).cubin)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["f32", "f16"])
def test_a_load_feeds_many_multiply_adds(listing: str, suffix: str) -> None:
    """Of SegFormer-B2's: each word through the load unit 3 at least, and of the projection nothing else in the way."""
    shape = TailShape(256, 256, 64, 768, 19, tail_issue.MAPS)
    parts = tail_issue.cost(tail_issue.Code(listing, f"tail_to_20_{suffix}"), shape)
    assert parts["project"].multiplies == 64 * 64
    assert parts["project"].multiplies >= 0.88 * parts["project"].instructions
    assert parts["classify"].multiplies == 32 * 8 * 5
    total = sum(parts.values(), tail_issue.Cost(0, 0, 0))
    assert total.multiplies >= 3 * total.words
    assert total.multiplies >= 0.7 * total.instructions


@pytest.mark.slow
def test_what_it_does_not_know_is_said(listing: str) -> None:
    with pytest.raises(DeployError, match="has no kernel tail_to_7_f32"):
        tail_issue.Code(listing, "tail_to_7_f32")
    with pytest.raises(DeployError, match="got 0, 0, 0 and 0 loops"):
        tail_issue.cost(tail_issue.Code(listing, "tile_stitch_quarter_f32"), TailShape(8, 8, 4, 4, 19, ()))
    with pytest.raises(DeployError, match="got 30 classes"):
        tail_issue.cost(tail_issue.Code(listing, "tail_to_48_f32"), TailShape(8, 8, 4, 4, 30, ()))
