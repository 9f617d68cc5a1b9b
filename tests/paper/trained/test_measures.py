"""All trained experiments: what they answer, what they cost, and that each goes on from the weights that it keeps."""

import pytest

from refimpl.paper.claims_table import read_claims
from refimpl.paper.results_file import TRAINED, read_results
from refimpl.paper.trained import learned, small_training
from refimpl.paper.trained.autoencoders import small_autoencoder
from refimpl.paper.trained.experiment import SEEDS, verdict
from refimpl.paper.trained.measures import EXPERIMENTS
from tests.paper.trained.toy import shrink

CORES, MINUTES = 2, 90
BESIDE_THE_TABLE = {
    "MinSNR policies",
    "offset noise",
    "scale and shift",
    "figures, fresh networks",
}  # asked of no single row
# Effects whose measured sign isn't clearly the report's, with what was measured instead. Everything else must be.
OTHERWISE: dict[str, str] = {
    "contrast of white and black, with offset noise less without": "unresolved",
    "colour error of rare tags, equal weights less tag weights": "unresolved",
    "blockiness of what is restored, decoder finetuned on damaged pictures less on clean": "unresolved",
    "PSNR in dB at batch 4, averaged weights less last": "the opposite",
    "SSIM at batch 4, averaged weights less last": "unresolved",
    "PSNR in dB at batch 16, averaged weights less last": "the opposite",
    "SSIM at batch 16, averaged weights less last": "the opposite",
}


def test_all_together_take_90_minutes_on_two_cores():
    assert SEEDS >= 5
    assert SEEDS * sum(experiment.seconds for experiment in EXPERIMENTS.values()) <= CORES * MINUTES * 60


def test_kept_effects_have_the_sign_that_was_predicted():
    kept = {effect.name: effect for effects in read_results(TRAINED).values() for effect in effects}
    for experiment in EXPERIMENTS.values():
        for name in experiment.predicted:
            assert verdict(kept[name]) == OTHERWISE.get(name, "as predicted"), name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_answers_its_measures_and_goes_on_from_what_it_kept(name, monkeypatch, tmp_path):
    shrink(monkeypatch)
    experiment = EXPERIMENTS[name]
    found = experiment.of_seed(0, tmp_path)
    numbers = {each: value for values in found.values() for each, value in values.items()}
    assert sum(len(values) for values in found.values()) == len(numbers)
    assert set(experiment.predicted) <= set(numbers)
    asked = {claim.measure for claim in read_claims() if claim.kind == "trained"}
    assert set(found) <= asked | BESIDE_THE_TABLE

    def refuse(*_):
        pytest.fail("trained again")

    monkeypatch.setattr(small_training, "train", refuse)
    monkeypatch.setattr(learned, "fit", refuse)
    monkeypatch.setattr(small_autoencoder, "train_autoencoder", refuse)
    assert experiment.of_seed(0, tmp_path) == found


def test_every_row_that_waits_is_answered_by_an_experiment(monkeypatch):
    waiting = {claim.measure for claim in read_claims() if claim.kind == "trained"}
    modules = {experiment.of_seed.__module__ for experiment in EXPERIMENTS.values()}
    measures = {getattr(__import__(name, fromlist=["MEASURE"]), "MEASURE", None) for name in modules}
    assert {measure for measure in waiting if not measure.startswith("figure ")} <= measures
