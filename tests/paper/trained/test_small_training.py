"""Small networks: functions of their settings, trained by the project's step, kept and read again."""

from dataclasses import replace

import pytest
import torch

from refimpl.diffusion.config import DiffusionConfig
from refimpl.paper.trained import small_training
from refimpl.paper.trained.small_model import PixelSpace
from refimpl.paper.trained.small_training import (
    SIZES_LEARNED,
    SmallRun,
    drawn_order,
    fit,
    pictured,
    train,
    trained_model,
)

RUN = SmallRun(side=8, steps=3, batch=4)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(small_training, "PICTURES", 16)


def weights(model):
    return torch.cat([parameter.flatten() for parameter in model.unet.parameters()])


def test_weights_are_a_function_of_the_settings():
    first, again, other = (weights(train(run)) for run in (RUN, RUN, replace(RUN, seed=1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_was_trained_is_read_again(tmp_path, monkeypatch):
    first = trained_model(RUN, tmp_path / "networks")
    monkeypatch.setattr(small_training, "train", lambda _: pytest.fail("trained again"))
    again = trained_model(RUN, tmp_path / "networks")
    assert torch.equal(weights(first), weights(again))
    assert first.scale_shift == again.scale_shift
    assert not any(parameter.requires_grad for parameter in again.unet.parameters())


def test_every_setting_makes_other_weights():
    runs = [
        RUN,
        replace(RUN, diffusion=DiffusionConfig(loss_weight="paper")),
        replace(RUN, seed=1),
        replace(RUN, side=16),
        replace(RUN, steps=4),
        replace(RUN, batch=5),
        replace(RUN, learning_rate=1e-3),
        replace(RUN, size_rate=SIZES_LEARNED),
        replace(RUN, ema_decay=0.9),
    ]
    assert len({run.digest() for run in runs}) == len(runs)


def test_latents_are_the_pixels():
    space, images = PixelSpace(), torch.rand(2, 3, 8, 8)
    assert space.config.factor == 1
    assert torch.equal(space.encode(images), images)
    assert torch.equal(space.decode(images), images)


@pytest.mark.parametrize(("rate", "is_alive"), [(1.0, False), (SIZES_LEARNED, True)])
def test_units_behind_the_sizes_live_at_a_rate_of_their_own(rate, is_alive):
    run = SmallRun(side=8, steps=60, batch=4, size_rate=rate)
    model, examples = pictured(run)
    takes_sizes = model.unet.get_submodule("label_emb.0.0")
    before = takes_sizes(examples.conditions.vector).mean().item()
    fit(model, (examples,), drawn_order(len(examples.latents), run)[:30], run, (30,))
    after = takes_sizes(examples.conditions.vector).mean().item()
    assert (abs(after - before) < 1) == is_alive
