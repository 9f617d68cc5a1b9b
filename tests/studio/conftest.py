"""One event loop for all requests of these tests, which would else begin a thread each."""

from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal

from tests.studio import asking


@pytest.fixture(scope="session", autouse=True)
def _portal() -> Iterator[None]:
    with start_blocking_portal() as portal:
        asking.portal = portal
        yield
