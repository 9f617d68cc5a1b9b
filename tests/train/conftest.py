"""Data sets and a finished run, shared by all tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train import runs
from tests.train.processes import start_server

start_server()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train/ (18 images), heldout/ (4) and autoencoder.safetensors; no test changes it."""
    folder = tmp_path_factory.mktemp("data")
    runs.write_images(folder / "train", 18)
    runs.write_images(folder / "heldout", 4, seed=1)
    runs.write_autoencoder(folder / "autoencoder.safetensors")
    return folder


@pytest.fixture(scope="session")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the plain `runs.table`: 4 steps, checkpoints 2 and 4; no test changes it."""
    return runs.go(runs.config(root, tmp_path_factory.mktemp("trained")))


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Callable[..., Path]:
    """run(name, **sections): trains `runs.table` changed by the sections; returns the run folder."""

    def make(name: str = "run", **sections: Any) -> Path:
        return runs.go(runs.config(root, tmp_path / name, **sections))

    return make
