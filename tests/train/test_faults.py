"""What the ranks agree on in a step: whether to take it, whether to stop after it; and when the host reads it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.run.config import TrainConfig
from refimpl.run.world import World
from refimpl.train.faults import Faults, is_read_at_once
from refimpl.train.watch.control_file import CONTROL, ask
from tests.train import runs
from tests.train.test_update import Waits

SELDOM = replace(
    TrainConfig(), steps=1000, log_every=100, validate_every=100, checkpoint_every=100, max_bad_steps=3
)
GOOD = (1.0, [0.5, 2.0])  # norm, and the losses of two images
Take = Callable[..., tuple[bool, bool]]


@pytest.fixture
def asked() -> list[bool]:
    """Whether the process has been asked to stop."""
    return [False]


@pytest.fixture
def faults(tmp_path: Path, asked: list[bool]) -> Faults:
    return Faults(SELDOM, tmp_path, runs.ALONE, lambda: asked[0])


def take(faults: Faults, step: int, norm: float, losses: list[float]) -> tuple[bool, bool]:
    """Whether a step of the images a and b is skipped, and whether the run stops after it."""
    faults.begin(step, ["a", "b"])
    for k, loss in enumerate(losses):
        faults.saw(torch.tensor([step + k]), torch.tensor([0.25], dtype=torch.float64), torch.tensor([loss]))
    skipped = faults.agree(torch.tensor(norm))
    assert skipped.shape == ()
    return bool(skipped), faults.settle()


def rows(folder: Path) -> list[dict[str, object]]:
    path = folder / "faults.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_loss_is_skipped_at_once_and_told_a_step_later(
    value: float, faults: Faults, tmp_path: Path
) -> None:
    assert take(faults, 1, *GOOD) == (False, False)
    assert take(faults, 2, 1.0, [0.5, value]) == (True, False)  # the gradient is finite
    assert rows(tmp_path) == []
    assert take(faults, 3, *GOOD) == (False, False)
    image = {"id": "b", "rank": 0, "timestep": 3, "sigma": 0.25, "loss": None}
    assert rows(tmp_path) == [{"step": 2, "not_finite": "loss", "images": [image]}]
    take(faults, 4, *GOOD)
    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_of_a_bad_gradient_all_images_are_told(value: float, faults: Faults, tmp_path: Path) -> None:
    assert take(faults, 7, value, [0.5, 2.0]) == (True, False)
    take(faults, 8, *GOOD)
    (row,) = rows(tmp_path)
    assert (row["step"], row["not_finite"]) == (7, "gradient")
    assert row["images"] == [
        {"id": name, "rank": 0, "timestep": 7 + k, "sigma": 0.25, "loss": loss}
        for k, (name, loss) in enumerate([("a", 0.5), ("b", 2.0)])
    ]


def test_a_step_that_is_logged_is_told_at_once(faults: Faults, tmp_path: Path) -> None:
    take(faults, 99, 1.0, [0.5, math.nan])
    take(faults, 100, 1.0, [math.nan, 1.0])
    assert [row["step"] for row in rows(tmp_path)] == [99, 100]
    take(faults, 101, *GOOD)
    assert len(rows(tmp_path)) == 2


def test_too_many_in_a_row_end_the_run_by_name(faults: Faults) -> None:
    for step in (1, 2):
        take(faults, step, 1.0, [0.5, math.nan])
    take(faults, 3, *GOOD)  # the row begins anew
    for step in (4, 5, 6):
        take(faults, step, math.inf, [0.5, 1.0])
    with pytest.raises(InputError) as error:
        take(faults, 7, *GOOD)
    for step in (4, 5, 6):
        assert f"step {step}: the gradient is not finite, for the images a (t = {step}" in str(error.value)
    assert "3 in a row, which train.max_bad_steps" in str(error.value)
    assert "step 2" not in str(error.value)


def test_a_stop_comes_a_step_after_it_was_asked_for(
    faults: Faults, asked: list[bool], tmp_path: Path
) -> None:
    assert take(faults, 1, *GOOD) == (False, False)
    asked[0] = True
    assert take(faults, 2, *GOOD) == (False, False)
    assert take(faults, 3, 1.0, [math.nan, 0.0]) == (True, True)
    assert [row["step"] for row in rows(tmp_path)] == [3]  # read too, before it is saved


def test_a_stop_at_a_logged_step_comes_at_once(faults: Faults, asked: list[bool]) -> None:
    asked[0] = True
    assert take(faults, 100, *GOOD) == (False, True)


def test_what_the_control_file_asks_for_is_due_a_step_later_and_once(faults: Faults, tmp_path: Path) -> None:
    def due(step: int) -> tuple[bool, bool]:
        assert take(faults, step, *GOOD) == (False, False)
        return faults.draws(step), faults.keeps(step)

    assert due(1) == (False, False)
    ask(tmp_path / CONTROL, "sample")
    assert due(2) == (False, False)
    ask(tmp_path / CONTROL, "checkpoint")
    assert due(3) == (True, True)  # the step's own numbers are read before it is kept
    assert due(4) == (False, False)
    assert due(100) == (False, True)  # it is time


def test_a_step_that_is_kept_since_it_was_asked_for_is_read_first(faults: Faults, tmp_path: Path) -> None:
    ask(tmp_path / CONTROL, "checkpoint")
    take(faults, 1, *GOOD)
    assert take(faults, 2, math.nan, [0.5, 2.0]) == (True, False)
    assert faults.keeps(2)
    assert [row["step"] for row in rows(tmp_path)] == [2]


def test_the_control_file_stops_a_run_as_a_signal_does(faults: Faults, tmp_path: Path) -> None:
    ask(tmp_path / CONTROL, "stop")
    assert take(faults, 1, *GOOD) == (False, False)
    assert take(faults, 2, *GOOD) == (False, True)


def test_one_rank_alone_looks_for_the_control_file(tmp_path: Path) -> None:
    ask(tmp_path / CONTROL, "stop")
    second = Faults(SELDOM, tmp_path, World(1, 1, runs.ALONE.device), lambda: False)
    take(second, 1, *GOOD)
    assert take(second, 2, *GOOD) == (False, False)
    assert (tmp_path / CONTROL).exists()


def test_samples_come_at_their_time() -> None:
    faults = Faults(replace(SELDOM, sample_every=40, steps=100), Path("unused"), runs.ALONE, lambda: False)
    assert [step for step in range(1, 101) if faults.draws(step)] == [40, 80, 100]
    assert [step for step in range(1, 101) if faults.keeps(step)] == [100]


def test_rows_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    faults = Faults(SELDOM, tmp_path / "gone", runs.ALONE, lambda: False)
    with pytest.raises(InputError, match=r"could not write .*faults\.jsonl: No such file"):
        take(faults, 100, math.nan, [0.5, 1.0])


def test_no_step_waits_for_the_device(faults: Faults) -> None:
    for step in (1, 2, 3):
        losses, norm = torch.tensor([0.5, 2.0]), torch.tensor(1.0)
        faults.begin(step, ["a", "b"])
        with Waits() as waits:
            faults.saw(torch.tensor([1, 2]), torch.tensor([0.1, 0.2]), losses)
            skipped: Tensor = faults.agree(norm)
        assert waits.names == []
        assert not skipped
        faults.settle()


def test_what_is_logged_measured_or_kept_is_read_first() -> None:
    """So that no checkpoint is written, and no row, before it is known whether the step was taken."""
    settings = replace(
        TrainConfig(), steps=100, log_every=10, validate_every=7, sample_every=0, checkpoint_every=33
    )
    read = [step for step in range(1, 101) if is_read_at_once(settings, step)]
    assert read == sorted({*range(10, 101, 10), *range(7, 101, 7), 33, 66, 99, 100})
    sampling = replace(settings, log_every=1000, validate_every=1000, checkpoint_every=1000, sample_every=40)
    assert [step for step in range(1, 101) if is_read_at_once(sampling, step)] == [40, 80, 100]
