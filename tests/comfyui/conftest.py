"""Makes a stub ComfyUI importable in every test of the nodes."""

from collections.abc import Iterator

import pytest

from tests.comfyui import stub


@pytest.fixture(autouse=True)
def comfyui() -> Iterator[None]:
    with stub.installed():
        yield
