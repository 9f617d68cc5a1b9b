"""What a run of adapters adapts: named by its digest, verified, and said when it is gone or another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from refimpl.commands.files.export import export_command
from refimpl.errors import InputError
from refimpl.interop import single_file
from refimpl.interop.run import as_checkpoint as run_checkpoint
from refimpl.interop.run.base import BASE, base_digest, base_state
from refimpl.interop.run.run_folder import load_model
from refimpl.storage import safetensors_file
from refimpl.storage.shards import digest
from tests.train import runs
from tests.train.test_lora_training import sections

Run = Callable[..., Path]


@pytest.fixture
def start(trained: Path, tmp_path: Path) -> Path:
    """The finished run as a single file."""
    path = tmp_path / "start.safetensors"
    single_file.save(run_checkpoint.load(trained)[0], path)
    return path


def test_the_run_holds_the_path_and_the_digest_alone(run: Run, start: Path) -> None:
    adapted = run(**sections(start))
    table = json.loads((adapted / BASE).read_text())
    unet = single_file.load(start).unet
    assert unet is not None
    assert table == {"path": str(start), "sha256": digest(unet)}
    assert not (adapted / "components" / "unet.safetensors").exists()
    assert torch.equal(base_state(adapted)["out.2.bias"], unet["out.2.bias"])


def test_the_same_values_elsewhere_and_in_another_format_are_the_same_base(
    run: Run, start: Path, tmp_path: Path
) -> None:
    """The digest is of float32 values: a converted file is the base still, one with another value is not."""
    half = tmp_path / "half.safetensors"
    single_file.save(single_file.load(start), half, torch.float16)
    adapted = run(**sections(half))
    found, moved = single_file.load(half), tmp_path / "moved.safetensors"
    single_file.save(found, moved, torch.float32)
    half.unlink()
    with pytest.raises(
        InputError, match=r"half\.safetensors is gone, whose UNet the adapters of .* adapt; put it ba"
    ):
        load_model(adapted)
    table = json.loads((adapted / BASE).read_text())
    (adapted / BASE).write_text(json.dumps(table | {"path": str(moved)}))
    model = load_model(adapted)[0]
    assert model.unet.state_dict()["out.2.bias"].dtype == torch.float32


def test_a_base_that_changed_is_refused_by_resuming_sampling_and_exporting(
    run: Run, start: Path, tmp_path: Path
) -> None:
    adapted = run(**sections(start))
    tensors, metadata = safetensors_file.read(start)
    key = "model.diffusion_model.out.2.bias"
    safetensors_file.write(start, {**tensors, key: tensors[key] + 1}, metadata)
    changed = (
        r"start\.safetensors has changed: the adapters of .* adapt a UNet with the SHA-256 [0-9a-f]{64}, and"
    )
    with pytest.raises(InputError, match=changed):
        load_model(adapted)
    with pytest.raises(InputError, match=changed):
        export_command([str(adapted), str(tmp_path / "out.safetensors")])
    assert not (tmp_path / "out.safetensors").exists()
    resumed = sections(start)
    with pytest.raises(InputError, match=changed):
        run(**resumed | {"train": resumed["train"] | {"resume": True, "steps": 6}})


def test_a_copy_needs_no_base(run: Run, start: Path) -> None:
    adapted = run("copied", **sections(start, copy_base=True))
    referring = run("referring", **sections(start))
    assert not (adapted / BASE).exists()
    expected = load_model(referring)[0].unet.state_dict()
    start.unlink()
    assert len(base_digest(adapted)) == 64
    assert not runs.differing({"x": load_model(adapted)[0].unet.state_dict()}, {"x": expected})
    unet = run_checkpoint.load(adapted)[0].unet
    assert unet is not None
    assert not runs.differing({"x": dict(unet)}, {"x": expected})


def test_of_a_run_the_checkpoint_that_was_read_is_the_base(run: Run, trained: Path, tmp_path: Path) -> None:
    """A run that trains on has other checkpoints later; its adapters stay those of the one they began with."""
    grown = shutil.copytree(trained, tmp_path / "grown")
    shutil.rmtree(grown / "checkpoints" / "step-00000004")
    adapted = run(**sections(grown))
    assert json.loads((adapted / BASE).read_text())["path"] == str(grown / "checkpoints" / "step-00000002")
    shutil.copytree(trained / "checkpoints" / "step-00000004", grown / "checkpoints" / "step-00000004")
    load_model(adapted)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"path": "x"}', "[" * 100_000], ids=["empty", "list", "half", "deep"]
)
def test_a_reference_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / BASE).write_text(text)
    with pytest.raises(InputError, match=r"base\.json cannot be read .* must be a JSON object with the path"):
        base_digest(tmp_path)
