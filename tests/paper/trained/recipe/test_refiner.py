"""The refiner differs from its base in its timesteps alone; pixels are measured from the nearest pure colour."""

from dataclasses import replace

import pytest
import torch

from refimpl.paper.trained.pictures import pictures
from refimpl.paper.trained.recipe import refiner
from refimpl.paper.trained.recipe.refiner import (
    COLOURS,
    LOSS,
    MEASURE,
    distance_from_colours,
    refiner_run,
)
from refimpl.paper.trained.small_training import SmallRun


def test_only_the_timesteps_differ():
    run = SmallRun(seed=4)
    own = refiner_run(run)
    assert own.diffusion.last_timestep == 199
    assert replace(own, diffusion=run.diffusion) == run
    assert replace(own.diffusion, last_timestep=999) == run.diffusion


def test_pure_colours_are_at_no_distance():
    flat = pictures(12, 8, 0)[0][::2] / 2 + 0.5
    assert distance_from_colours(flat) == pytest.approx(0, abs=1e-3)
    grey = torch.full((1, 3, 4, 4), 0.1)
    assert distance_from_colours(grey) == pytest.approx(0.03**0.5)


def test_effects_are_what_the_refiner_saves(monkeypatch, tmp_path):
    monkeypatch.setattr(refiner, "trained_model", lambda run, _: run.diffusion.last_timestep)
    monkeypatch.setattr(refiner, "held_out", lambda *_: None)
    monkeypatch.setattr(
        refiner, "held_out_loss", lambda model, _, last: {999: 0.4, 199: 0.1}[model] * (last == 199)
    )
    monkeypatch.setattr(refiner, "distances", lambda *_: (0.5, 0.2))
    found = refiner.of_seed(0, tmp_path)[MEASURE]
    assert found[LOSS] == pytest.approx(2)
    assert found[COLOURS] == pytest.approx(0.3)
