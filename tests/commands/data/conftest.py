"""Fixtures of the tests beside it."""

import shutil
from pathlib import Path

import pytest

from tests.train import caches


@pytest.fixture
def data(root: Path, tmp_path: Path) -> Path:
    """A copy of the data sets that a test may change."""
    shutil.copytree(root, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def config(data: Path, tmp_path: Path) -> str:
    """A configuration of the copy."""
    return caches.toml(data, tmp_path)
