"""Fixtures of the tests beside it."""

import shutil
from pathlib import Path

import pytest

from refimpl.interop import diffusers_folder
from refimpl.text.tokenizer import tiny_tokenizer
from tests.interop.checkpoints import working
from tests.interop.diffusers_folder.test_read_write import OTHER, V_ZTSNR


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a whole tiny model; tests copy it before they change it."""
    path = tmp_path_factory.mktemp("folder") / "model"
    diffusers_folder.save(working(prediction=V_ZTSNR, other=OTHER), path, tokenizer=tiny_tokenizer())
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))
