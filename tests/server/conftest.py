"""One server for all tests that leave it well, as a worker takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers import Running, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server") / "store") as one:
        yield one
