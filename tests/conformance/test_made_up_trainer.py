"""The way of somebody else's trainer: an adapter of some thirty lines, and what it learns."""

from pathlib import Path

from refimpl.conformance.evaluate import Effort, run_checks
from refimpl.conformance.load import describe, load_adapter
from refimpl.conformance.registry import all_checks
from refimpl.conformance.results.known import known_deviations
from refimpl.conformance.results.table import Report, complaints, lines, summary

ADAPTER = "tests.conformance.made_up_adapter:Adapter"
DEVIATIONS = {"weight.min_snr", "weight.mass_from_800", "weight.mass_from_950"}
MOST_LINES = 60
DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance_adapter.md"


def test_an_adapter_is_short_and_finds_what_is_wrong(tmp_path: Path) -> None:
    source = Path(__file__).with_name("made_up_adapter.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES
    adapter, checks = load_adapter(ADAPTER), all_checks()
    outcomes = run_checks(checks.values(), adapter, Effort(examples=10))
    tested = Report(ADAPTER, *(describe(adapter)[key] for key in ("title", "version", "links")), outcomes)
    by_name = {outcome.check: outcome for outcome in outcomes}
    assert {name for name, outcome in by_name.items() if outcome.status == "deviates"} == DEVIATIONS
    assert by_name["weight.mass_from_800"].text.startswith("1.115 %")
    assert by_name["guide.rescales"].status == "not offered"
    assert by_name["epoch.once"].text == "epoch"
    assert summary(tested).startswith("made-up trainer 1.4: ")
    assert any(line.startswith("deviates  weight.min_snr") for line in lines(tested, checks))
    known = tmp_path / "known.toml"
    sizes = {name: by_name[name].deviation for name in DEVIATIONS}
    known.write_text(
        "\n".join(
            f'[{name}]\ndeviation = "{float(f"{size:.2g}"):.4g}"\nchose = "the SNR of the other schedule"'
            for name, size in sizes.items()
        )
    )
    assert complaints(tested, checks, known_deviations(ADAPTER, str(known))) == []
    assert len(complaints(tested, checks, {})) == len(DEVIATIONS)


def test_the_document_lists_every_method() -> None:
    from refimpl.conformance.adapter import METHODS

    table = DOCUMENT.read_text(encoding="utf-8")
    assert [method for method in METHODS if f"| `{method}` |" not in table] == []
