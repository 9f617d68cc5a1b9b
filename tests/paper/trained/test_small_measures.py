"""Measures of a model that draws what it is asked for, and of one that draws grey."""

from dataclasses import replace

import pytest
import torch

from refimpl.paper.denoising import Denoising
from refimpl.paper.trained import small_measures, small_training
from refimpl.paper.trained.pictures import colour_value, pictures
from refimpl.paper.trained.small_measures import (
    HELD_OUT_SEED,
    brightness,
    canvas,
    colour_error,
    held_out,
    held_out_loss,
    terminal_slope,
)
from refimpl.paper.trained.small_training import SmallRun, pictured

SETTINGS = canvas(8, 8, 0, images=2)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(small_training, "PICTURES", 16)
    monkeypatch.setattr(small_measures, "HELD_OUT", 6)
    return pictured(SmallRun(side=8))[0]


def drawing(share):
    """A stand-in for `denoising` that draws this share of the colour asked for."""

    def denoising(model, settings, prompt, start_sigma=None, size=None):
        pixels = share * colour_value(prompt.split()[-1])[:, None, None]
        image = pixels.expand(settings.seeds, 3, settings.height, settings.width)
        return Denoising([1.0], model.scale_shift.standardise(image)[None])

    return denoising


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_colours_and_their_slope_are_those_drawn(model, monkeypatch, share):
    monkeypatch.setattr(small_measures, "denoising", drawing(share))
    assert colour_error(model, SETTINGS) == pytest.approx((1 - share) / 2, abs=1e-6)
    assert brightness(model, SETTINGS) == pytest.approx((0.5 - share / 2, 0.5 + share / 2), abs=1e-6)
    assert terminal_slope(model, SETTINGS) == pytest.approx(share, abs=1e-6)


def test_noise_of_an_image_is_the_seeds():
    assert canvas(8, 8, 1) == canvas(8, 8, 1)
    assert canvas(8, 8, 1).seed != canvas(8, 8, 2).seed


def test_the_held_out_loss_of_a_network_that_says_nothing_is_the_square_of_v(model):
    unseen = held_out(model, 8, 0)
    expected = pictures(6, 8, HELD_OUT_SEED)[0]
    torch.testing.assert_close(model.scale_shift.restore(unseen.latents), expected)

    class Silent(torch.nn.Module):
        def forward(self, x, *_):
            return torch.zeros_like(x)

    silent = replace(model, unet=Silent())
    at_first = held_out_loss(silent, unseen, 0)
    assert 0.5 < at_first < 2  # v is nearly the noise where almost none is added
    assert held_out_loss(silent, unseen, 0) == at_first
