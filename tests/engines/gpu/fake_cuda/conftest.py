"""What every check on the fake driver starts from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.gpu.fake_cuda import support


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    with support.nothing_stays():
        yield


@pytest.fixture(params=["at once", "late"])
def schedule(request: pytest.FixtureRequest) -> int:
    """Streams run at once, or as late as the program's waiting allows: a missing wait shows in one of the two."""
    return int(request.param == "late")
