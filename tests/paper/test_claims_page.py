"""docs/claims.md is what the generator writes, and says what was not measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from refimpl.commands.paper.claims import claims_command
from refimpl.errors import InputError
from refimpl.paper.claims_page import NOT_YET, answer_of, claims_page, interval
from refimpl.paper.claims_table import Claim, read_claims
from refimpl.paper.computed.quantity import Quantity, exact
from refimpl.paper.results_file import kept_results, read_results, write_results
from refimpl.paper.trained.experiment import TrainedExperiment
from tests.tolerances import KEPT_NUMBER

PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
CLAIM = Claim("N99", "§9", "trained", "a statement", "", "an experiment", "")


def test_the_page_is_what_the_generator_writes():
    page = claims_page(read_claims(), kept_results())
    assert PAGE.read_text(encoding="utf-8") == page, "run: refimpl claims --page docs/claims.md"
    for claim in read_claims():
        assert page.count(f"\n| {claim.id} | ") == 1


def test_what_is_not_measured_is_said_to_be_so():
    assert answer_of(CLAIM, {}) == NOT_YET
    low = Quantity("an effect", 0.5, 0.25, 0.75)
    assert answer_of(CLAIM, {"an experiment": [low]}) == "an effect: 0.5 [0.25, 0.75]"
    many = [low, low, low]
    assert answer_of(CLAIM, {"an experiment": many}).endswith("([all](#an-experiment))")


def test_an_effect_without_the_predicted_sign_is_called_so(monkeypatch):
    experiment = TrainedExperiment(lambda seed, folder: {}, ("an effect",), 1)
    monkeypatch.setattr("refimpl.paper.claims_page.EXPERIMENTS", {"a": experiment})

    def row(low, high, name="an effect"):
        return answer_of(CLAIM, {"an experiment": [Quantity(name, 0.5, low, high)]})

    assert row(0.25, 0.75) == "an effect: 0.5 [0.25, 0.75]"
    assert row(-0.25, 0.75) == "an effect: 0.5 [-0.25, 0.75] (unresolved)"
    assert row(-0.75, -0.25) == "an effect: 0.5 [-0.75, -0.25] (the opposite)"
    assert row(-0.25, 0.75, "no effect") == "no effect: 0.5 [-0.25, 0.75]"  # a number beside the effects


def test_a_pinned_claim_with_a_measure_has_both():
    pinned = replace(CLAIM, kind="pinned", answer="0.05")
    assert answer_of(pinned, {}) == "0.05"
    assert answer_of(pinned, {"an experiment": [exact("n", 2.0)]}) == "0.05; n: 2"


def test_rows_say_what_their_numbers_leave_open():
    rows = {claim.id: answer_of(claim, kept_results()) for claim in read_claims()}
    assert (
        "at 32 px, after 500 steps; numerical stability and high resolutions were not measured" in rows["N05"]
    )
    assert "(unresolved)" in rows["N43"]
    assert rows["S28"].startswith("0.05; contrast of white and black, with offset noise less without: ")
    assert "(unresolved)" in rows["S28"]
    assert rows["R02"].startswith("brightness of black from ∞: 0.0")
    assert "]; true black is 0 ([all]" in rows["R02"]


def test_notes_quote_how_far_apart_the_ends_of_intervals_are():
    """Of a variance and of the level that grows as its root."""
    computed = kept_results()
    snr = next(each for each in computed["canvas noise"] if each.name == "SNR of the canvas mean at σ = 14.6")
    unit = next(each for each in computed["share told"] if each.name.startswith("σ at which"))
    assert (unit.high / unit.low) ** 2 == pytest.approx(snr.high / snr.low, rel=KEPT_NUMBER)
    page = " ".join(claims_page(read_claims(), computed).split())
    assert f"are a factor of {snr.high / snr.low:.0f} apart" in page
    assert f"as the root of the variance, one of {unit.high / unit.low:.1f}." in page


def test_an_exact_number_is_shown_without_an_interval():
    assert interval(exact("n", 1 / 3)) == "0.3333"
    assert interval(Quantity("n", 12345.678, 1.0, 20000.0)) == "1.235e+04 [1, 2e+04]"


def test_results_come_back_and_other_files_are_named(tmp_path):
    path = tmp_path / "results.json"
    assert read_results(path) == {}
    measured = {"m": [Quantity("a", 0.1234567891, 0.0, 2.0), exact("b", 3.0)]}
    write_results(path, "refimpl claims --computed", measured)
    assert read_results(path) == {"m": [Quantity("a", 0.123457, 0.0, 2.0), exact("b", 3.0)]}
    for content in ("[]", "{", '{"measures": {"m": [{"value": 1}]}}'):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match="not a file of results"):
            read_results(path)


def test_the_command_writes_numbers_and_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("refimpl.paper.computed.measures.MEASURES", {"m": lambda: [exact("one", 1.0)]})
    out, page = tmp_path / "computed.json", tmp_path / "claims.md"
    claims_command(["--computed", "--out", str(out), "--page", str(page)])
    assert read_results(out) == {"m": [exact("one", 1.0)]}
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    assert "one: 1" in capsys.readouterr().out


def test_trained_numbers_join_those_of_the_file(tmp_path, monkeypatch, capsys):
    def experiment(measure, value):
        return TrainedExperiment(
            lambda seed, folder: {measure: {"an effect": value, "beside": 1.0}}, ("an effect",), 1
        )

    experiments = {"a": experiment("m", 1.0), "b": experiment("n", -1.0)}
    monkeypatch.setattr("refimpl.paper.trained.measures.EXPERIMENTS", experiments)
    out = tmp_path / "trained.json"
    write_results(out, "refimpl claims --trained", {"kept": [exact("k", 5.0)], "m": [exact("old", 0.0)]})
    claims_command(["--trained", "--experiment", "a", "--out", str(out)])
    assert "an effect: 1 (as predicted)\n  beside: 1\n" in capsys.readouterr().out
    both = {"kept": [exact("k", 5.0)], "m": [exact("an effect", 1.0), exact("beside", 1.0)]}
    assert read_results(out) == both
    claims_command(["--trained", "--out", str(out)])
    assert "an effect: -1 (the opposite)" in capsys.readouterr().out
    assert read_results(out) == both | {"n": [exact("an effect", -1.0), exact("beside", 1.0)]}
    with pytest.raises(InputError, match="--experiment 'c' is unknown; use all, a, b"):
        claims_command(["--trained", "--experiment", "c"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing was asked for"),
        (["--out", "x"], "--out is for the numbers"),
        (["--computed", "--trained"], "two files of numbers"),
    ],
)
def test_what_the_command_cannot_do(arguments, message):
    with pytest.raises(InputError, match=message):
        claims_command(arguments)
