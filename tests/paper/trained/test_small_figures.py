"""N Fig. 2, 3, 4, 6 and 7 by small networks: what the package keeps of them, and how it comes about."""

import json
from dataclasses import replace

import pytest
import torch

from refimpl.commands.paper.claims import claims_command
from refimpl.commands.paper.figures import small_figures
from refimpl.paper.effects import BLACK_FROM_INFINITY, WHITE_FROM_INFINITY
from refimpl.paper.results_file import TRAINED, read_results
from refimpl.paper.trained import experiment, small_training
from refimpl.paper.trained import small_figures as module
from refimpl.paper.trained.small_figures import NETWORK_SEEDS, _over_networks
from tests.tolerances import KEPT_NUMBER

FIGURES = (2, 3, 4, 6, 7)
BESIDE = (BLACK_FROM_INFINITY, WHITE_FROM_INFINITY)  # of no predicted sign


def test_the_measured_effects_have_the_sign_of_the_report():
    kept = read_results(TRAINED)
    effects = [effect for number in FIGURES for effect in kept[f"figure {number}"]]
    assert {effect.name for effect in effects} == {*module.PREDICTED, *BESIDE}
    for effect in effects:
        assert effect.name in BESIDE or effect.low > 0, f"{effect.name}: {effect.low} to {effect.high}"


def test_black_and_white_from_infinity_are_near_what_was_asked():
    """In brightness from 0 to 1: nearer to it than the start from 14.6 is from both."""
    kept = {effect.name: effect for effect in read_results(TRAINED)["figure 2"]}
    black, white = (kept[name] for name in BESIDE)
    brighter = kept["brightness of black from 14.6 less from ∞"]
    assert 0 <= black.low < black.high < brighter.low
    assert 1 - brighter.low < white.low < white.high <= 1


def test_there_are_five_networks_and_the_mean_of_each():
    assert len(NETWORK_SEEDS) == 5
    over = _over_networks([{"a": torch.tensor([1.0, 3.0])}, {"a": torch.tensor([5.0, 5.0])}])
    assert over["a"].tolist() == [2.0, 5.0]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(small_training, "PICTURES", 8)
    monkeypatch.setattr(module, "NETWORK_SEEDS", range(2))
    monkeypatch.setattr(experiment, "SEEDS", 2)
    monkeypatch.setattr(module, "SmallRun", lambda seed: small_training.SmallRun(seed=seed, steps=1, batch=2))
    few = replace(module.SETTINGS, prompts=module.PROMPTS[:1], steps=2)
    monkeypatch.setattr(module, "SETTINGS", few)
    monkeypatch.setattr(module, "CANVAS", replace(few, width=8, height=8))
    monkeypatch.setattr("refimpl.paper.experiments.EFFECT_SEEDS", 2)
    return tmp_path


def test_figures_measures_and_files_are_of_the_same_networks(tiny, capsys):
    paths = small_figures(tiny)
    names = [f"novelai_v3_figure_{number}.png" for number in FIGURES]
    assert [path.name for path in paths] == [*names, "experiments.json"]
    assert len(list((tiny / module.NETWORKS).iterdir())) == 2
    drawn = json.loads(paths[-1].read_text(encoding="utf-8"))
    claims_command(
        [
            *("--trained", "--experiment", "figures"),
            *("--networks", str(tiny / module.NETWORKS), "--out", str(tiny / "trained.json")),
        ]
    )
    kept = read_results(tiny / "trained.json")
    assert list(kept) == [f"figure {number}" for number in FIGURES]
    for figure, effects in kept.items():
        for effect in effects:
            beside = drawn[figure]["effects"][effect.name]
            assert len(beside["seeds"]) == 2
            assert beside["value"] == pytest.approx(effect.value, abs=KEPT_NUMBER)
    assert "figure 7" in capsys.readouterr().out
