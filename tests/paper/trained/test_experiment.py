"""Means and intervals over seeds, the verdict on a sign, and equal numbers by one process and by several."""

from pathlib import Path

import numpy as np
import pytest
import torch

from refimpl.errors import InputError
from refimpl.paper.computed.quantity import COVERAGE, RESAMPLES, SEED, Quantity
from refimpl.paper.trained import experiment as module
from refimpl.paper.trained.experiment import TrainedExperiment, measured_experiments, over_seeds, verdict

VALUES = (0.3, -0.1, 0.8, 0.4, 0.2)


def of_seed(seed: int, folder: Path):
    return {"measure": {"effect": VALUES[seed], "threads": float(torch.get_num_threads())}}


EXPERIMENT = TrainedExperiment(of_seed, ("effect",), 1.0)


def test_the_interval_is_that_of_the_mean_over_seeds_drawn_anew():
    found = over_seeds([of_seed(seed, Path()) for seed in range(5)])["measure"][0]
    rows = np.random.default_rng(SEED)
    means = np.array([np.take(VALUES, rows.integers(5, size=5)).mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    assert found.name == "effect"
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(VALUES), low, high))


def test_a_number_that_does_not_vary_has_no_interval():
    assert over_seeds([{"m": {"a": 2.0}}] * 5)["m"][0].is_exact


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.3, "as predicted"),
        (0.0, 0.3, "unresolved"),
        (-0.1, 0.3, "unresolved"),
        (-2.0, -1.0, "the opposite"),
    ],
)
def test_the_verdict_is_of_the_whole_interval(low, high, said):
    assert verdict(Quantity("effect", (low + high) / 2, low, high)) == said


def test_processes_give_the_numbers_of_one(tmp_path):
    before = torch.get_num_threads()
    one, two = (
        [found[:2] for found in measured_experiments({"a": EXPERIMENT, "b": EXPERIMENT}, tmp_path, jobs)]
        for jobs in (1, 2)
    )
    assert one == two
    assert [name for name, _ in one] == ["a", "b"]
    assert one[0][1]["measure"][1].value == 1  # a thread
    assert torch.get_num_threads() == before


def test_all_seeds_are_run(monkeypatch, tmp_path):
    seen = []

    def noted(seed, folder):
        seen.append((seed, folder))
        return of_seed(seed, folder)

    list(measured_experiments({"a": TrainedExperiment(noted, (), 1.0)}, tmp_path, 1))
    assert seen == [(seed, tmp_path) for seed in range(module.SEEDS)]


def test_no_process_is_refused(tmp_path):
    with pytest.raises(InputError, match="--jobs 0"):
        list(measured_experiments({"a": EXPERIMENT}, tmp_path, 0))
