"""The figures' effects on networks that no choice of a measure has seen."""

from refimpl.paper.trained import fresh_figures, small_figures
from refimpl.paper.trained.experiment import SEEDS


def test_they_are_the_figures_measures_on_other_seeds(monkeypatch, tmp_path):
    asked = []

    def of_seed(seed, folder):
        asked.append((seed, folder))
        return {"figure 2": {"a": 1.0, "of no predicted sign": 3.0}, "figure 4": {"b": 2.0}}

    monkeypatch.setattr(small_figures, "of_seed", of_seed)
    monkeypatch.setattr(small_figures, "PREDICTED", ("a", "b"))
    found = [fresh_figures.of_seed(seed, tmp_path) for seed in range(SEEDS)]
    assert not {seed for seed, _ in asked} & set(small_figures.NETWORK_SEEDS)
    assert asked == [(seed, tmp_path) for seed in range(SEEDS, 2 * SEEDS)]
    expected = {"a, fresh networks": 1.0, "b, fresh networks": 2.0}
    assert found == [{"figures, fresh networks": expected}] * SEEDS


def test_every_effect_of_the_figures_is_predicted_again():
    expected = tuple(f"{name}, fresh networks" for name in small_figures.PREDICTED)
    assert expected == fresh_figures.PREDICTED
