"""Fixtures of the tests beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from refimpl.interop import single_file
from tests.interop.checkpoints import working
from tests.interop.single_file.test_read_write import OTHER, V_ZTSNR


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny model in one file, which no test changes."""
    path = tmp_path_factory.mktemp("single") / "whole.safetensors"
    single_file.save(working(prediction=V_ZTSNR, other=OTHER), path)
    return path


@pytest.fixture
def changed(whole: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Tensor]], object]], Path]:
    """changed(f): the file's path after f has changed its tensors."""

    def make(change: Callable[[dict[str, Tensor]], object]) -> Path:
        tensors, metadata = load_file(str(whole)), {"modelspec.title": "changed"}
        result = change(tensors)
        path = tmp_path / "changed.safetensors"
        save_file(result if isinstance(result, dict) else tensors, str(path), metadata)
        return path

    return make
