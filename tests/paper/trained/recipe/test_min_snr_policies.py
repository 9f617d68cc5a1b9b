"""The policies differ in nothing else, and only one of them lets the terminal step learn."""

from dataclasses import replace

import pytest

from refimpl.paper.trained.recipe import min_snr_policies
from refimpl.paper.trained.recipe.min_snr_policies import MEASURE, SLOPE, run_of
from refimpl.paper.trained.small_training import SmallRun


def test_only_the_policy_differs():
    paper, plus_one = run_of("paper", 2), run_of("snr_plus_one", 2)
    assert plus_one == SmallRun(seed=2)  # the network of the figures
    assert replace(paper, diffusion=plus_one.diffusion) == plus_one
    assert replace(paper.diffusion, loss_weight="snr_plus_one") == plus_one.diffusion
    assert paper.diffusion.loss_weights()[999] == 0
    assert plus_one.diffusion.loss_weights()[999] == 1


def test_the_effect_is_the_difference_of_the_slopes(monkeypatch, tmp_path):
    monkeypatch.setattr(min_snr_policies, "trained_model", lambda run, _: run.diffusion.loss_weight)
    monkeypatch.setattr(
        min_snr_policies, "terminal_slope", lambda model, _: {"paper": 0.5, "snr_plus_one": 0.75}[model]
    )
    assert min_snr_policies.of_seed(0, tmp_path)[MEASURE][SLOPE] == pytest.approx(0.25)
