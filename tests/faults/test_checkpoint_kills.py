"""A save that is killed at any of its operations loses no committed checkpoint, and leaves none that is not whole."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from refimpl.run.world import World
from tests.faults import saves
from tests.faults.saves import (
    WAYS,
    Training,
    check_goes_on,
    counted,
    in_child,
    killed_at,
    saved_run,
    whole_steps,
)
from tests.storage.ranks.states import join_group
from tests.train.processes import run_ranks

Tally = Callable[..., None]
Case = tuple[int, int, str]  # rank, number of its operation, way


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    """A run with checkpoints 1 and 2, and its state at step 3."""
    run = tmp_path_factory.mktemp("base") / "run"
    return run, saved_run(run)


def names_of(run: Path, training: Training) -> list[str]:
    """The operations of a save, in order, by a copy of this process."""
    told, says = os.pipe()

    def job() -> None:
        seen: list[str] = []
        counted(lambda number, name, do, half: (seen.append(name), do())[1])
        training.save(run, 3)
        os.write(says, " ".join(seen).encode())

    assert in_child(job) == 0
    names = os.read(told, 65536).decode().split()
    os.close(told)
    os.close(says)
    return names


def kill_alone(base: tuple[Path, Training], folder: Path, cases: Sequence[Case], tally: Tally) -> None:
    original, training = base
    names = names_of(shutil.copytree(original, folder / "names"), training)
    commit = names.index("rename")
    lost = 0
    for _, number, way in cases or all_of([names]):
        run = shutil.copytree(original, folder / f"{number}-{way}")

        def job(run: Path = run, number: int = number, way: str = way) -> None:
            counted(killed_at(number, way))
            training.save(run, 3)

        assert in_child(job) == -9
        steps = whole_steps(run)
        is_committed = number > commit or (number == commit and way == "after")
        lost += 2 not in steps or is_committed != (3 in steps) or (1 not in steps and not is_committed)
        check_goes_on(run, training)
        shutil.rmtree(run)
    tally(tried=len(cases or all_of([names])), lost=lost, operations=len(names))
    assert lost == 0


def all_of(names: Sequence[Sequence[str]]) -> list[Case]:
    """Every operation of every rank before, after and, of writes, halfway through."""
    return [
        (rank, number, way)
        for rank, own in enumerate(names)
        for number, name in enumerate(own)
        for way in WAYS
        if way != "half" or name == "write"
    ]


def test_a_save_enumerates_what_it_does(base: tuple[Path, Training], tmp_path: Path) -> None:
    """Writes, then fsyncs, the manifest, the rename that commits; only then is the oldest checkpoint deleted."""
    names = names_of(shutil.copytree(base[0], tmp_path / "run"), base[1])
    commit = names.index("rename")
    before, after = names[:commit], names[commit + 1 :]
    assert set(before) == {"mkdir", "write", "fsync"}
    assert before.index("fsync") > before.index("write")
    assert before[-3:] == ["write", "fsync", "fsync"]  # the manifest, it and the folder
    assert after[0] == "fsync"  # the folder's new name
    assert after[1] == "rename"  # of the oldest, no checkpoint from here on
    assert set(after[2:]) == {"unlink", "rmdir"}


def test_a_save_killed_here_and_there(base: tuple[Path, Training], tmp_path: Path, tally: Tally) -> None:
    names = names_of(shutil.copytree(base[0], tmp_path / "run"), base[1])
    commit, last = names.index("rename"), len(names) - 1
    numbers = [1, 5, commit - 3, commit, commit, commit + 1, commit + 2, last - 2, last]
    ways = ["after", "half", "half", "before", "after", "before", "after", "before", "before"]
    kill_alone(base, tmp_path, [(0, n, way) for n, way in zip(numbers, ways, strict=True)], tally)


@pytest.mark.faults
def test_a_save_killed_everywhere(base: tuple[Path, Training], tmp_path: Path, tally: Tally) -> None:
    kill_alone(base, tmp_path, [], tally)


# --- two ranks ---


def save_as_rank(arguments: list[str]) -> None:
    """A rank's part: goes on from what there is, takes a step and saves; the one told to dies at an operation."""
    run, rank, number, way = Path(arguments[0]), int(arguments[1]), int(arguments[2]), arguments[3]
    peers = join_group()
    training = Training(World(peers.rank, peers.size, torch.device("cpu")))
    step = training.load(run)
    names: list[str] = []
    act = killed_at(number, way) if rank == peers.rank else lambda number, name, do, half: do()
    counted(lambda number, name, do, half: (names.append(name), act(number, name, do, half))[1])
    training.step()
    training.save(run, step + 1)
    descriptor = os.open(f"{run}-names-{peers.rank}", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, " ".join(names).encode())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """A run whose checkpoints 1 and 2 are in shards of two ranks, and the operations of their third save."""
    folder = tmp_path_factory.mktemp("shared")
    for _ in range(2):
        assert save_two(folder / "run", (-1, -1, "")) == [0, 0]
    assert sorted(
        path.name for path in (folder / "run" / "checkpoints" / "step-00000002" / "ema").iterdir()
    ) == [f"shard-0000{number}-model-00001-of-00001.safetensors" for number in (1, 2)]
    third = shutil.copytree(folder / "run", folder / "third")
    assert save_two(third, (-1, -1, "")) == [0, 0]
    return folder / "run", [Path(f"{third}-names-{rank}").read_text().split() for rank in (0, 1)]


def save_two(run: Path, case: Case) -> list[int]:
    return run_ranks([str(run), *map(str, case)], 2, run.parent / "said", save_as_rank)


def kill_one_of_two(
    shared: tuple[Path, list[list[str]]], folder: Path, cases: Sequence[Case], tally: Tally
) -> None:
    original, names = shared
    commit = names[0].index("rename")
    lost = 0
    for rank, number, way in cases:
        run = shutil.copytree(original, folder / f"{rank}-{number}-{way}")
        codes = save_two(run, (rank, number, way))
        assert codes[rank] == -9
        steps = whole_steps(run)
        is_committed = rank == 0 and (number > commit or (number == commit and way == "after"))
        lost += 2 not in steps or is_committed != (3 in steps)
        training = Training()
        assert training.load(run) == steps[-1]
        if 3 not in steps:
            training.step()
        check_is_whole_run(training)
        check_goes_on(run, training)
        shutil.rmtree(run)
    tally(tried=len(cases), lost=lost, operations=sum(map(len, names)))
    assert lost == 0


def check_is_whole_run(training: Training) -> None:
    """Weights, averages and moments are those of three steps by one process, bit for bit."""
    alone = Training()
    for _ in range(3):
        alone.step()
    for a, b in (
        (alone.parts[0].state_dict(), training.parts[0].state_dict()),
        (alone.averages["unet"], training.averages["unet"]),
        (saves.moments(alone), saves.moments(training)),
    ):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_one_of_two_ranks_killed_here_and_there(
    shared: tuple[Path, list[list[str]]], tmp_path: Path, tally: Tally
) -> None:
    names = shared[1]
    commit = names[0].index("rename")
    assert names[1].count("write") == 3  # a shard of each state
    cases = [(1, names[1].index("write"), "half"), (0, commit, "before"), (0, commit, "after")]
    kill_one_of_two(shared, tmp_path, cases, tally)


@pytest.mark.faults
def test_either_of_two_ranks_killed_everywhere(
    shared: tuple[Path, list[list[str]]], tmp_path: Path, tally: Tally
) -> None:
    kill_one_of_two(shared, tmp_path, all_of(shared[1]), tally)
