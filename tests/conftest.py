"""Hypothesis profile: reproducible examples, no deadline (the machines' clocks are noisy). One thread per process.

The data sets and the finished run that all tests share are made when the first test asks for them.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "refimpl",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("refimpl")

# Tests compute on small tensors, where a second thread only waits; on a busy machine it waits ten times as long.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that a test starts


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train/ (18 images), heldout/ (4) and autoencoder.safetensors; no test changes it."""
    from tests.train import runs

    folder = tmp_path_factory.mktemp("data")
    runs.write_images(folder / "train", 18)
    runs.write_images(folder / "heldout", 4, seed=1)
    runs.write_autoencoder(folder / "autoencoder.safetensors")
    return folder


@pytest.fixture
def data(root: Path, tmp_path: Path) -> Path:
    """A copy of the data sets that a test may change."""
    shutil.copytree(root, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the plain `runs.table`: 4 steps, checkpoints 2 and 4; no test changes it."""
    from tests.train import runs

    return runs.go(runs.config(root, tmp_path_factory.mktemp("trained")))


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Callable[..., Path]:
    """run(name, **sections): trains `runs.table` changed by the sections; returns the run folder."""

    from tests.train import runs

    def make(name: str = "run", **sections: Any) -> Path:
        return runs.go(runs.config(root, tmp_path / name, **sections))

    return make
