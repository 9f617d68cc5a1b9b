"""Which checkpoint of a run is meant, whatever its layout, and whatever has happened to it."""

import shutil
from pathlib import Path

import pytest

from refimpl.errors import InputError
from refimpl.interop import any_checkpoint
from refimpl.interop.run.checkpoints import committed_steps, newest_whole, prune, step_folder
from refimpl.interop.run.run_folder import load_model
from refimpl.storage import committed
from tests.storage.ranks.states import halves, sign, write_shards
from tests.tensors import same
from tests.train import runs


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def cut_into_shards(folder: Path) -> Path:
    """Makes shards of two ranks of every state in a checkpoint."""
    for name, state in committed.read(folder).tensors.items():
        (folder / f"{name}.safetensors").unlink()
        write_shards(folder / name, halves(state))
    sign(folder)
    return folder


def test_a_checkpoint_in_shards_is_the_same_model(trained: Path, copied: Path) -> None:
    folder = cut_into_shards(step_folder(copied, 4))
    assert not list(folder.glob("*.safetensors"))
    for weights in ("ema", "unet"):
        expected, *facts = load_model(trained, weights)
        found, *other = load_model(copied, weights)
        assert facts == other
        assert same(expected.unet.state_dict(), found.unet.state_dict())
    opened, whole = any_checkpoint.load(folder), any_checkpoint.load(trained)
    assert same(opened.checkpoint.unet, whole.checkpoint.unet)


def test_a_run_goes_on_from_shards(trained: Path, copied: Path, root: Path) -> None:
    cut_into_shards(step_folder(copied, 2))
    shutil.rmtree(step_folder(copied, 4))
    runs.go(runs.config(root, copied, train={"resume": True}))
    assert not runs.differing(runs.checkpoint(trained, 4), runs.checkpoint(copied, 4))


def test_a_run_starts_from_shards(trained: Path, copied: Path, root: Path, tmp_path: Path) -> None:
    cut_into_shards(step_folder(copied, 4))
    starts = [
        runs.go(runs.config(root, tmp_path / name, train={"steps": 1, "init_from": str(start)}))
        for name, start in (("a", trained), ("b", copied))
    ]
    assert not runs.differing(*(runs.checkpoint(run, 1) for run in starts))


@pytest.mark.parametrize("damage", ["ema.safetensors", "config.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_and_left_alone(
    damage: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = step_folder(copied, 4)
    (newest / damage).unlink()
    before = sorted(copied.rglob("*"))
    assert load_model(copied)[2] == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "passed over: " in told.err
    assert f"used instead: {step_folder(copied, 2)}" in told.err
    with pytest.raises(InputError, match="step-00000004"):
        load_model(newest)
    (step_folder(copied, 2) / "manifest.json").unlink()
    with pytest.raises(InputError, match="step-00000004"):
        load_model(copied)
    (newest / "unet.safetensors").unlink()
    assert sorted(copied.rglob("*")) != before  # by this test alone
    assert committed_steps(copied) == ([] if damage == "manifest.json" else [4])


def test_damage_elsewhere_in_a_checkpoint_does_not_matter_to_a_reader(copied: Path) -> None:
    (step_folder(copied, 4) / "optimizer.safetensors").write_bytes(b"")
    assert load_model(copied)[2] == 4


def make(run: Path, *steps: int) -> Path:
    for step in steps:
        committed.write(step_folder(run, step), {}, {"state": {"step": step}})
    return run


@pytest.mark.parametrize(
    ("keep", "every", "kept"),
    [
        (0, 0, [1, 2, 3, 4, 5, 6]),
        (2, 0, [5, 6]),
        (1, 2, [2, 4, 6]),
        (1, 3, [3, 6]),
        (2, 4, [4, 5, 6]),
        (9, 1, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_old_checkpoints_go(keep: int, every: int, kept: list[int], tmp_path: Path) -> None:
    run = make(tmp_path, 1, 2, 3, 4, 5, 6)
    for name in ("step-00000001.damaged-1", "step-00000007"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / ".step-00000006.writing-9").mkdir()
    prune(run, keep, every)
    assert committed_steps(run) == kept
    others = sorted(path.name for path in (run / "checkpoints").iterdir())
    expected = [*(f"step-{step:08d}" for step in kept), "step-00000001.damaged-1", "step-00000007"]
    assert others == sorted(expected)


def test_a_run_without_checkpoints_has_none_to_go_on_from(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None
    make(tmp_path, 3)
    assert newest_whole(tmp_path) == step_folder(tmp_path, 3)
