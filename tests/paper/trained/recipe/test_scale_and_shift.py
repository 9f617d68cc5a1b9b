"""One factor leaves the channels where N Fig. 8 has them; own scale and shift bring them to 0 and 1."""

import pytest
import torch

from refimpl.latents.scale_shift import NOVELAI_ANIME
from refimpl.paper.trained.pictures import pictures
from refimpl.paper.trained.recipe import scale_and_shift
from refimpl.paper.trained.recipe.scale_and_shift import COLOUR, MEASURE, one_factor
from refimpl.paper.trained.small_training import measured
from tests.tolerances import FLOAT32_ROUNDING


def test_one_factor_is_0_13025_times_the_latents_of_the_report():
    images, _ = pictures(64, 8, 0)
    own = measured(images)
    channels = one_factor(own).standardise(images).transpose(0, 1).flatten(1)
    mean = 0.13025 * torch.tensor(NOVELAI_ANIME.mean[:3])
    std = 0.13025 * torch.tensor(NOVELAI_ANIME.std[:3])
    torch.testing.assert_close(channels.mean(1), mean, atol=FLOAT32_ROUNDING, rtol=FLOAT32_ROUNDING)
    torch.testing.assert_close(channels.std(1), std, atol=FLOAT32_ROUNDING, rtol=FLOAT32_ROUNDING)
    back = one_factor(own).restore(one_factor(own).standardise(images))
    torch.testing.assert_close(back, images, atol=FLOAT32_ROUNDING, rtol=FLOAT32_ROUNDING)


def test_the_effect_is_the_error_saved(monkeypatch, tmp_path):
    class Own:
        scale_shift = "own"

    monkeypatch.setattr(scale_and_shift, "trained_model", lambda *_: Own)
    monkeypatch.setattr(scale_and_shift, "by_one_factor", lambda *_: "factor")
    monkeypatch.setattr(scale_and_shift, "colour_error", lambda model, _: 0.3 if model == "factor" else 0.1)
    assert scale_and_shift.of_seed(0, tmp_path)[MEASURE][COLOUR] == pytest.approx(0.2)
