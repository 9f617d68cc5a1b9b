"""The pace of a machine, as it is measured before a run."""

import itertools

import pytest
import torch

from refimpl.run.presets import load_config
from refimpl.train.setup import pace
from refimpl.train.setup.pace import MEASURED, WARM, autoencoder_step, seconds_per_step, training_step


def test_the_median_of_ten_steps_after_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two are not counted, and one that something else held up does not count either."""
    clock = itertools.accumulate(itertools.cycle([0.0, 3.0]))
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    called = []

    def step() -> None:
        called.append(len(called))
        if len(called) == 5:
            next(clock)
            next(clock)

    assert seconds_per_step(step) == 3.0
    assert len(called) == WARM + MEASURED == 12


@pytest.mark.parametrize("of", ["autoencoder", "training"])
def test_a_step_leaves_nothing_behind(of: str) -> None:
    """No draw of what follows changes, and the same step can be taken again."""
    config = load_config("tiny")
    before = torch.random.get_rng_state()
    step = autoencoder_step(config.vae, config.latents) if of == "autoencoder" else training_step(config)
    for _ in range(2):
        step()
    assert torch.equal(torch.random.get_rng_state(), before)
