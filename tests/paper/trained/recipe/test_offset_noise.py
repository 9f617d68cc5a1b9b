"""Offset noise of S's strength, scaled to the canvas, is all that differs."""

from dataclasses import replace

import pytest

from refimpl.paper.trained.recipe import offset_noise
from refimpl.paper.trained.recipe.factorial import CELLS
from refimpl.paper.trained.recipe.offset_noise import CONTRAST, MEASURE, WITHOUT, with_offset


def test_only_the_offset_differs():
    assert with_offset().offset_noise == pytest.approx(0.2)
    assert replace(with_offset(), offset_noise=0.0) == WITHOUT == CELLS["v, plain"]


def test_the_effect_is_the_contrast_gained(monkeypatch, tmp_path):
    monkeypatch.setattr(offset_noise, "trained_model", lambda run, _: run.diffusion.offset_noise)
    monkeypatch.setattr(offset_noise, "brightness", lambda model, _: (0.1, 0.9) if model else (0.25, 0.75))
    assert offset_noise.of_seed(0, tmp_path)[MEASURE][CONTRAST] == pytest.approx(0.3)
