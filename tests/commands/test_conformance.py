"""`refimpl conformance`: what it prints, writes and returns."""

import json
from pathlib import Path

import pytest

from refimpl.commands.conformance import conformance_command
from refimpl.commands.pages.conformance_page import conformance_page
from refimpl.conformance.check import Outcome
from refimpl.conformance.registry import all_checks
from refimpl.conformance.results.known import Known
from refimpl.conformance.results.table import Report
from refimpl.errors import InputError

ADAPTER = "tests.conformance.made_up_adapter:Adapter"


def test_a_deviation_is_printed_written_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, numbers = tmp_path / "report.html", tmp_path / "report.json"
    arguments = [ADAPTER, "--only", "weight", "--examples", "3", "--html", str(page), "--json", str(numbers)]
    with pytest.raises(SystemExit) as ended:
        conformance_command(arguments)
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "deviates  weight.mass_from_800" in printed
    assert "made-up trainer 1.4: 1 conform, 3 deviate, 1 are choices" in printed
    assert "source: N §2.4" in printed
    content = json.loads(numbers.read_text(encoding="utf-8"))
    (peer,) = content["peers"]
    assert (peer["title"], peer["version"]) == ("made-up trainer", "1.4")
    assert [entry["check"] for entry in peer["outcomes"]] == [check["name"] for check in content["checks"]]
    html = page.read_text(encoding="utf-8")
    assert "<title>Conformance of made-up trainer 1.4</title>" in html
    assert "1.115 % of all weight" in html


def test_the_page_escapes_what_an_adapter_says() -> None:
    outcomes = [
        Outcome("weight.finite", "deviates", None, "weight raised E: <script>", "t = 1"),
        Outcome("weight.at_zero_snr", "choice", 0.1, "0.1"),
        Outcome("grid.length", "not offered", text="grid"),
    ]
    known = {"weight.finite": Known("fault", "Divides by <zero>.", "NaN.", "Add one.")}
    html = conformance_page(Report("x:A", "<b>", "1", {}, outcomes), all_checks(), known)
    assert "<script>" not in html
    assert "<b>" not in html
    assert "Divides by &lt;zero&gt;. NaN. Add one." in html
    assert "Not offered" in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an adapter"),
        (["refimpl", "--only", "grids"], "nearest is 'grid'"),
        (["refimpl", "--examples", "0"], "must be positive"),
        (["refimpl", "--seconds", "-1"], "must be positive"),
        (["refimpl", "--known", "/nonexistent.toml"], "known deviations /nonexistent.toml"),
        (["diffuser"], "nearest is 'diffusers'"),
    ],
)
def test_bad_input_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        conformance_command(arguments)
