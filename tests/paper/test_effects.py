"""The effects of N's figures, on networks of which they are known."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from refimpl.interop.run.run_folder import load_model
from refimpl.model.pipeline import Model
from refimpl.paper.denoising import paper_level
from refimpl.paper.effects import (
    BLACK_FROM_INFINITY,
    PUBLISHED_END,
    SECOND_NATIVE_LEVEL,
    WHITE_FROM_INFINITY,
    effect_2,
    effect_3,
    effect_4,
    effect_6,
    effect_7,
)
from refimpl.sample.config import SampleConfig
from tests.tolerances import NETWORK_FLOAT32

SETTINGS = SampleConfig(prompts=("dark", "red circle"), seeds=3, steps=4, guidance=1.0, width=32, height=32)


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return load_model(trained)[0]


class Leaning(torch.nn.Module):
    """Predicts a clean canvas whose value is `clean` from ∞, and (1 − lost) of it from finite starts."""

    def __init__(self, schedule, clean: float, lost: float, starts: list[float]):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.schedule, self.clean, self.lost, self.starts = schedule, clean, lost, starts
        self.from_infinity = False

    def forward(self, x, t, context, vector):
        sigma_edm = self.schedule.t_to_sigma_edm(t.double()).reshape(-1, 1, 1, 1)
        level = float(sigma_edm.flatten()[0])
        if math.isinf(level) or any(math.isclose(level, start, rel_tol=1e-9) for start in self.starts):
            self.from_infinity = math.isinf(level)
        clean = self.clean * (1.0 if self.from_infinity else 1 - self.lost)
        alpha, sigma = 1 / torch.sqrt(1 + sigma_edm**2), 1 / torch.sqrt(1 + sigma_edm**-2)
        return (alpha * x - clean) / sigma


def leaning(model: Model, clean: float = 0.4, lost: float = 0.25) -> Model:
    """The model with that network, which remembers where a run started until the next one starts."""
    starts = [paper_level(model, SETTINGS, sigma) for sigma in (PUBLISHED_END, SECOND_NATIVE_LEVEL)]
    return replace(model, unet=Leaning(model.diffusion.schedule(), clean, lost, starts))


def test_the_share_of_the_canvas_mean_that_is_lost(model: Model) -> None:
    for effect in (effect_3, effect_4):
        (values,) = effect(leaning(model), SETTINGS, SETTINGS.prompts).values()
        assert values.shape == (3,)
        assert values == pytest.approx(torch.full((3,), 0.25), abs=NETWORK_FLOAT32)
        (none,) = effect(leaning(model, lost=0.0), SETTINGS, SETTINGS.prompts).values()
        assert none == pytest.approx(torch.zeros(3), abs=NETWORK_FLOAT32)


def test_a_network_that_heeds_neither_prompt_nor_start_has_no_effects(model: Model) -> None:
    still = leaning(model, lost=0.0)
    found = {**effect_2(still, SETTINGS), **effect_6(still, SETTINGS, SETTINGS, SETTINGS.prompts)}
    found |= effect_7(still, SETTINGS, SETTINGS, SETTINGS.prompts)
    black, white = (found.pop(name).tolist() for name in (BLACK_FROM_INFINITY, WHITE_FROM_INFINITY))
    assert black == pytest.approx(white, abs=NETWORK_FLOAT32)
    assert len(found) == 4
    for name, values in found.items():
        assert values.tolist() == pytest.approx([0, 0, 0], abs=NETWORK_FLOAT32), name


def test_black_is_brighter_where_the_canvas_is_pulled_to_grey(model: Model, monkeypatch) -> None:
    monkeypatch.setattr("refimpl.paper.effects.decoded", lambda _, latents: latents[:, :3] / 2 + 0.5)
    found = effect_2(leaning(model, clean=-0.8, lost=0.5), SETTINGS)
    assert found["brightness of black from 14.6 less from ∞"].tolist() == pytest.approx(
        [0.2] * 3, abs=NETWORK_FLOAT32
    )
    for name in (BLACK_FROM_INFINITY, WHITE_FROM_INFINITY):  # −0.8 as a pixel of 0 … 1
        assert found[name].tolist() == pytest.approx([0.1] * 3, abs=NETWORK_FLOAT32)
    contrast = found["contrast of white and black, from ∞ less from 14.6"]
    assert contrast.tolist() == pytest.approx([0] * 3, abs=NETWORK_FLOAT32)  # white is as dark here
