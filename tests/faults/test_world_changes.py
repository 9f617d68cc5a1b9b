"""Killed at any moment and continued on other numbers of ranks, a run in `ordered` mode keeps every bit."""

import random
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refimpl.interop.run.checkpoints import committed_steps
from refimpl.interop.run.run_folder import CONFIG
from tests.faults.watching import losses, printed, until
from tests.train import runs
from tests.train.processes import join_ranks, start_ranks

MICRO_BATCHES = 4
SETTINGS = {
    "reduction": "ordered", "batch_size": 1, "micro_batches": MICRO_BATCHES, "log_every": 1, "checkpoint_every": 1,
    "keep_checkpoints": 2, "validate_every": 10**6, "steps": 10**6,
}  # fmt: skip
LONGEST_LIFE = 1.0  # s after the first step, in which some ten more are taken
EARLY = 0.25  # share of the kills that come before the first step is logged


class Changing:
    """A run that is started on some ranks and killed, again and again."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.run, self._folder, self._toml = folder / "run", folder, folder / "a.toml"
        runs.write_toml(root, self._toml, self.run, train=SETTINGS)
        self.seen: defaultdict[int, set[float]] = defaultdict(
            set
        )  # step → every loss that was ever logged for it
        self.kills = self.committed = 0

    def start(self, world: int, *options: str) -> list[Any]:
        own = ["--resume", str(self.run)] if (self.run / CONFIG).exists() else [str(self._toml)]
        return start_ranks([*own, *options], world, self._folder / f"output-{self.kills}")

    def kill(self, world: int, life: Callable[[], Any]) -> None:
        """Starts the run and kills all ranks when `life` is over."""
        ranks = self.start(world)
        life()
        for process in ranks:
            process.kill()
        codes = join_ranks(ranks)
        assert codes == [-9] * world, printed(self._folder / f"output-{self.kills}")
        self.note()
        self.kills += 1

    def note(self) -> None:
        """Adds the losses that are logged by now; no committed step may have gone."""
        for step, loss in losses(self.run).items():
            assert loss is not None
            self.seen[step].add(loss)
        newest = max(committed_steps(self.run), default=0)
        assert newest >= self.committed
        self.committed = newest

    def finish(self, world: int, steps: int) -> None:
        """Lets the run come to its end."""
        ranks = self.start(world, "--train.steps", str(steps))
        assert join_ranks(ranks) == [0] * world, printed(self._folder / f"output-{self.kills}")
        self.note()


def check(changing: Changing, root: Path, tmp_path: Path, steps: int) -> tuple[int, int]:
    """Compares with the run that was never stopped: values compared, and those that differ."""
    train = {**SETTINGS, "steps": steps}
    whole = runs.go(runs.config(root, tmp_path / "whole", train=train))
    expected = losses(whole)
    assert set(expected) == set(changing.seen)
    wrong = sum(loss != expected[step] for step, found in changing.seen.items() for loss in found)
    assert not runs.differing(runs.checkpoint(whole, steps), runs.checkpoint(changing.run, steps))
    assert not [
        path for path in changing.run.rglob("*") if path.name.startswith(".")
    ]  # temporary files and folders
    return sum(map(len, changing.seen.values())), wrong


def test_two_ranks_are_killed_and_three_go_on(root: Path, tmp_path: Path, tally: Callable[..., None]) -> None:
    changing = Changing(root, tmp_path)
    changing.kill(2, lambda: until(lambda: committed_steps(changing.run)))
    steps = changing.committed + 2
    changing.finish(3, steps)
    compared, wrong = check(changing, root, tmp_path, steps)
    tally(tried=compared, lost=wrong, kills=changing.kills)
    assert wrong == 0


@pytest.mark.faults
def test_fifty_kills_with_the_world_changing(root: Path, tmp_path: Path, tally: Callable[..., None]) -> None:
    """Between 1, 2, 3 and 4 ranks; at any moment, some before the first step."""
    draw = random.Random(0)
    changing, world = Changing(root, tmp_path), 2
    changing.kill(world, lambda: until(lambda: (changing.run / CONFIG).exists()))
    while changing.kills < 50:
        world = draw.choice([size for size in (1, 2, 3, 4) if size != world])
        changing.kill(world, lambda: lived(changing, draw))
    steps = changing.committed + 2
    changing.finish(draw.choice((3, 4)), steps)
    compared, wrong = check(changing, root, tmp_path, steps)
    tally(tried=compared, lost=wrong, kills=changing.kills)
    assert wrong == 0


def lived(changing: Changing, draw: random.Random) -> None:
    """Waits for a random time: from the start, or from the first step that this life has added."""
    if draw.random() >= EARLY:
        before = changing.committed
        until(lambda: max(committed_steps(changing.run), default=0) > before)
    time.sleep(draw.uniform(0, LONGEST_LIFE))
