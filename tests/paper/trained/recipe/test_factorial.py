"""The cells differ in one thing each, and the effects are positive where the report's side has the better number."""

from dataclasses import replace

import pytest

from refimpl.diffusion.config import DiffusionConfig
from refimpl.errors import InputError
from refimpl.paper.trained.recipe import factorial
from refimpl.paper.trained.recipe.factorial import BLACK, CELLS, COLOUR, CONTRAST, LOSS, MEASURE, run_of

EPS, PLAIN, RESCALED = CELLS.values()


def test_neighbouring_cells_differ_in_one_setting():
    assert replace(EPS, parameterisation="v") == PLAIN
    assert replace(PLAIN, zero_terminal_snr=True) == RESCALED
    first, *others = (run_of(cell, 3) for cell in CELLS.values())
    assert all(replace(other, diffusion=first.diffusion) == first for other in others)


def test_the_fourth_cell_is_refused():
    with pytest.raises(InputError, match="eps"):
        DiffusionConfig(parameterisation="eps", zero_terminal_snr=True)


def test_effects_are_positive_where_the_report_has_the_better_number(monkeypatch, tmp_path):
    monkeypatch.setattr(factorial, "trained_model", lambda run, _: run.diffusion)
    monkeypatch.setattr(factorial, "held_out", lambda *_: None)
    monkeypatch.setattr(factorial, "held_out_loss", lambda model, _: {EPS: 0.8, PLAIN: 0.2}[model])
    monkeypatch.setattr(
        factorial, "colour_error", lambda model, _: {EPS: 0.5, PLAIN: 0.2, RESCALED: 0.1}[model]
    )
    extremes = {EPS: (0.4, 0.6), PLAIN: (0.25, 0.75), RESCALED: (0.0, 1.0)}
    monkeypatch.setattr(factorial, "brightness", lambda model, _: extremes[model])
    found = factorial.of_seed(0, tmp_path)[MEASURE]
    assert found[LOSS] == pytest.approx(2)
    assert found[COLOUR] == pytest.approx(0.3)
    assert found[CONTRAST] == pytest.approx(0.5)
    assert found[BLACK] == pytest.approx(0.25)
