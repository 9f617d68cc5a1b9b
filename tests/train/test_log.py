"""metrics.jsonl: rows, what a continued run keeps of them, and values that JSON does not know."""

import json
import math
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.min_snr import weight_mass
from refimpl.run.world import World
from refimpl.train.log import RunLog
from refimpl.train.step_plan import PlanStep
from tests.tolerances import CLOCK_SHARE, FLOAT64_ROUNDING
from tests.train import runs

ROWS = [{"step": 0, "heldout_loss": 1.0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}, {"step": 3}]


def log(root: Path, run: Path, start: int = 0, rank: int = 0, **train: Any) -> RunLog:
    world = World(rank, 1, runs.ALONE.device)
    return RunLog(runs.config(root, run, train=train), run, start, world)


@pytest.mark.parametrize(("start", "kept"), [(0, 0), (1, 2), (2, 3), (9, 4)])
@pytest.mark.parametrize(
    "tail",
    ["", '{"step": 1, "lo', "\n", "null\n", "\xff\n", "[" * 100_000 + "\n"],
    ids=["none", "half", "empty", "null", "binary", "deep"],
)
def test_a_continued_run_keeps_the_rows_up_to_its_start(
    start: int, kept: int, tail: str, root: Path, tmp_path: Path
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS) + tail
    (tmp_path / "metrics.jsonl").write_text(text, encoding="latin-1")
    rows = log(root, tmp_path, start)
    rows.row(step=start + 1, loss=2.0)
    rows.close()
    assert runs.rows(tmp_path) == [*ROWS[:kept], {"step": start + 1, "loss": 2.0}]


def test_numbers_that_are_not_finite_become_null_and_nothing_is_no_row(root: Path, tmp_path: Path) -> None:
    rows = log(root, tmp_path)
    rows.row(step=1, loss=math.nan, gradient_norm=math.inf, bucket=[32, 64], note=None)
    rows.row(step=2, heldout_loss=None)
    rows.close()
    assert runs.rows(tmp_path) == [{"step": 1, "loss": None, "gradient_norm": None, "bucket": [32, 64]}]


def test_other_ranks_write_nothing(root: Path, tmp_path: Path) -> None:
    rows = log(root, tmp_path, rank=1)
    rows.row(step=1, loss=1.0)
    rows.weight_mass(DiffusionConfig())
    rows.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("policy", ["paper", "snr_plus_one"])
@pytest.mark.parametrize(("first", "last"), [(0, 999), (0, 199), (900, 999), (950, 998)])
def test_weight_mass_is_a_share_of_what_is_trained(
    policy: str, first: int, last: int, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DiffusionConfig(loss_weight=policy, first_timestep=first, last_timestep=last)
    weights = config.loss_weights()
    rows = log(root, tmp_path)
    rows.weight_mass(config)
    rows.close()
    row = runs.rows(tmp_path)[0]
    share = row["weight_mass"]["share"]
    trained = float(weights[first : last + 1].sum())
    assert share == pytest.approx(
        float(weights[max(first, 950) : last + 1].sum()) / trained, rel=FLOAT64_ROUNDING
    )
    assert (first, last) != (0, 999) or share == weight_mass(weights, 950)
    never = "t = 999 has weight 0: policy 'floor' or 'snr_plus_one'" in capsys.readouterr().out
    assert never == (policy == "paper" and last == 999)


def test_a_continued_run_says_its_weight_mass_once(root: Path, tmp_path: Path) -> None:
    rows = log(root, tmp_path, start=2)
    rows.weight_mass(DiffusionConfig())
    rows.close()
    assert not runs.rows(tmp_path)


def test_tensorboard_gets_numbers_and_samples(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the package, which is optional."""
    written: list[tuple[Any, ...]] = []

    class Module:
        class SummaryWriter:
            def __init__(self, folder: str):
                written.append((folder,))

            def add_scalar(self, *arguments: Any) -> None:
                written.append(arguments)

            def add_image(self, name: str, pixels: Any, step: int, dataformats: str) -> None:
                written.append((name, pixels.shape, step, dataformats))

            def close(self) -> None:
                written.append(("closed",))

    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", Module)
    rows = log(root, tmp_path, tensorboard=True)
    rows.row(step=3, loss=0.5, bucket=[1, 2], epoch=0)
    rows.samples(3, torch.zeros(1, 2, 3, 8, 16))
    rows.close()
    picture = ("samples/0 red circle", (8, 16 + 2 + 16, 3), 3, "HWC")
    numbers = [("loss", 0.5, 3), ("epoch", 0, 3)]
    assert written == [(str(tmp_path / "tensorboard"),), *numbers, picture, ("closed",)]
    assert (tmp_path / "samples" / "step-00000003.png").is_file()


def step_of(root: Path, waited: float = 0.0) -> PlanStep:
    stage = runs.config(root, root).all_stages()[0]
    return PlanStep(stage, 3, (32, 64), 8, 8.0, [], [], waited)


def micro_batch(t: list[int], is_repeat: bool = False) -> Any:
    return SimpleNamespace(t=torch.tensor(t), is_repeat=is_repeat)


def test_a_repeat_counts_nowhere(root: Path, tmp_path: Path) -> None:
    rows, drift = log(root, tmp_path), partial(torch.tensor, 0.25)
    rows.add(micro_batch([5, 950]), torch.tensor([1.0, 3.0]))
    rows.add(micro_batch([5, 950], is_repeat=True), torch.zeros(2))
    rows.step(1, step_of(root), torch.tensor(2.0), 0.1, torch.tensor(1.0), time.perf_counter(), drift)
    rows.close()
    assert runs.rows(tmp_path)[0]["loss_by_timestep"] == [1.0, *[None] * 8, 3.0]


def test_rows_and_lines_are_of_the_whole_interval(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of four steps, the last of which waited for nothing; off a terminal, a line and no bar."""
    rows = log(root, tmp_path, log_every=4, steps=9)
    for done in range(1, 10):
        started = time.perf_counter() - 1.0
        waited = 0.0 if done % 4 == 0 else 0.5
        rows.add(micro_batch([100 * (done % 4)]), torch.tensor([float(done)]))
        drift = partial(torch.tensor, 0.25)
        rows.step(done, step_of(root, waited), torch.tensor(2.0), 0.1, torch.tensor(1.0), started, drift)
    rows.close()
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written] == [4, 8, 9]
    assert written[0]["loss_by_timestep"] == [4.0, 1.0, 2.0, 3.0, *[None] * 6]
    assert written[2]["loss_by_timestep"] == [None, 9.0, *[None] * 8]
    for row, stall in zip(written, (1.5 / 4, 1.5 / 4, 0.5), strict=True):
        assert row["images_per_second"] == pytest.approx(8, rel=CLOCK_SHARE)
        assert row["loader_stall"] == pytest.approx(stall, rel=CLOCK_SHARE)
        assert row["ema_drift"] == 0.25
        assert row["peak_memory"] > 2**26
        assert "mfu" not in row
    printed = capsys.readouterr().err
    assert "\r" not in printed
    assert [line[20:].split(" steps")[0] for line in printed.splitlines()] == [
        "train: 4 of 9", "train: 8 of 9", "train: 9 of 9",
    ]  # fmt: skip
