"""A checkpoint from whatever a path names."""

import json
from pathlib import Path

import pytest

from refimpl.errors import InputError
from refimpl.interop import any_checkpoint, diffusers_folder, single_file
from tests.interop.checkpoints import same_bits, working


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the tiny networks; no test but the last changes it."""
    path = tmp_path_factory.mktemp("any") / "folder"
    diffusers_folder.save(working(), path)
    return path


def test_a_file_and_a_folder_are_told_apart(folder: Path, tmp_path: Path) -> None:
    single_file.save(diffusers_folder.load(folder), tmp_path / "model.safetensors")
    file, opened = (any_checkpoint.load(path) for path in (tmp_path / "model.safetensors", folder))
    assert (file.kind, opened.kind) == (any_checkpoint.FILE, any_checkpoint.FOLDER)
    assert same_bits(file.checkpoint.unet, opened.checkpoint.unet)
    assert file.tokenizer is None
    with pytest.raises(InputError, match="nowhere does not exist"):
        any_checkpoint.kind_of(tmp_path / "nowhere")


def test_the_null_condition_is_zeros_unless_the_index_says_otherwise(folder: Path) -> None:
    """As diffusers' pipeline takes it, and as SDXL was trained."""
    index = folder / "model_index.json"
    table = json.loads(index.read_text())
    for said, zeros in (({}, True), ({"force_zeros_for_empty_prompt": False}, False)):
        rest = {key: value for key, value in table.items() if key != "force_zeros_for_empty_prompt"}
        index.write_text(json.dumps(rest | said))
        assert any_checkpoint.load(folder).zeros_for_empty is zeros
    index.unlink()
    assert any_checkpoint.load(folder).zeros_for_empty is True
