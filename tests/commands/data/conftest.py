"""Fixtures of the tests beside it."""

from pathlib import Path

import pytest

from tests.train import caches


@pytest.fixture
def config(data: Path, tmp_path: Path) -> str:
    """A configuration of the copy."""
    return caches.toml(data, tmp_path)
