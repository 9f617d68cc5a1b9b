"""A changed bit in any file of a checkpoint is found, the checkpoint set aside, and the one before it used."""

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from refimpl.interop.run.checkpoints import newest_whole, step_folder
from refimpl.run.world import World
from refimpl.storage import committed
from tests.faults.saves import Training, saved_run
from tests.storage.ranks.states import halves, join_group, sign, write_shards
from tests.train.processes import run_ranks

Tally = Callable[..., None]


@pytest.fixture(scope="module", params=["files", "shards"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints 1 and 2; the second with one file per state, or two shards."""
    run = tmp_path_factory.mktemp("base") / "run"
    saved_run(run)
    if request.param == "shards":
        newest = step_folder(run, 2)
        for name, state in committed.read(newest).tensors.items():
            (newest / f"{name}.safetensors").unlink()
            write_shards(newest / name, halves(state))
        sign(newest)
    return run


def flip(base: Path, folder: Path, bits: Callable[[int], Sequence[int]], tally: Tally) -> None:
    """Flips one bit at a time.    bits  number of a file's bits → those to flip"""
    newest, before = step_folder(base, 2), step_folder(base, 1)
    tried = lost = 0
    run = shutil.copytree(base, folder / "run")
    for file in sorted(path for path in newest.rglob("*") if path.is_file()):
        name, content = file.relative_to(newest), file.read_bytes()
        for bit in bits(8 * len(content)):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            (step_folder(run, 2) / name).write_bytes(changed)
            found = newest_whole(run)
            aside = step_folder(run, 2).with_name("step-00000002.damaged-1")
            tried += 1
            lost += found != step_folder(run, 1) or not aside.is_dir()
            assert (aside / name).read_bytes() == changed  # kept as it was found
            aside.rename(step_folder(run, 2))
        (step_folder(run, 2) / name).write_bytes(content)
    assert newest_whole(run) == step_folder(run, 2)
    committed.verify(step_folder(run, 1))
    assert before.name == "step-00000001"
    tally(tried=tried, lost=lost)
    assert lost == 0


def test_a_bit_of_each_file(base: Path, tmp_path: Path, tally: Tally) -> None:
    flip(base, tmp_path, lambda size: (0, size // 2, size - 1), tally)


@pytest.mark.faults
def test_many_bits_of_each_file(base: Path, tmp_path: Path, tally: Tally) -> None:
    draw = random.Random(0)
    flip(base, tmp_path, lambda size: sorted(draw.sample(range(size), 100)), tally)


def test_damage_to_one_after_the_other(base: Path, tmp_path: Path, tally: Tally) -> None:
    """A file that is gone, with a folder of that name set aside already; then no checkpoint is whole."""
    run = shutil.copytree(base, tmp_path / "run")
    (run / "checkpoints" / "step-00000002.damaged-1").mkdir()
    (step_folder(run, 2) / "config.json").unlink()
    training = Training()
    assert training.load(run) == 1
    assert (run / "checkpoints" / "step-00000002.damaged-2").is_dir()
    training.step()
    training.save(run, 2)
    assert Training().load(run) == 2
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step-00000001", "step-00000002", "step-00000002.damaged-1", "step-00000002.damaged-2"]
    tally(tried=1, lost=0)


def test_what_is_loaded_after_damage_is_the_checkpoint_before(base: Path, tmp_path: Path) -> None:
    run = shutil.copytree(base, tmp_path / "run")
    (step_folder(run, 2) / "manifest.json").unlink()
    loaded, alone = Training(), Training()
    assert loaded.load(run) == 1
    alone.step()
    for name, value in alone.parts[0].state_dict().items():
        assert torch.equal(loaded.parts[0].state_dict()[name], value)


def load_as_rank(arguments: list[str]) -> None:
    """A rank's part: goes on from the checkpoint before the damaged one, like the others."""
    peers = join_group()
    training = Training(World(peers.rank, peers.size, torch.device("cpu")))
    assert peers.gathered(training.load(Path(arguments[0]))) == [1] * peers.size


@pytest.mark.parametrize("file", ["config.json", "manifest.json"])
def test_all_ranks_go_on_from_the_same_checkpoint(
    file: str, base: Path, tmp_path: Path, tally: Tally
) -> None:
    """Whichever of them reads the file that is damaged."""
    run = shutil.copytree(base, tmp_path / "run")
    (step_folder(run, 2) / file).write_text("{}")
    codes = run_ranks([str(run)], 2, tmp_path / "said", load_as_rank)
    assert codes == [0, 0], [path.read_text() for path in sorted((tmp_path / "said").iterdir())]
    said = (tmp_path / "said" / "rank0.txt").read_text()
    assert f"set aside as {step_folder(run, 2)}.damaged-1; going on from the checkpoint before" in said
    other = (tmp_path / "said" / "rank1.txt").read_text().splitlines()
    assert [
        line for line in other if not line.startswith("[Gloo]")
    ] == []  # as gloo of torch 2.9 greets its peers
    tally(tried=1, lost=0)
