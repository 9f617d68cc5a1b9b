"""The published page is that of the published numbers, which are those of the checks as they are."""

import json
from pathlib import Path

from refimpl.conformance.load import SHIPPED
from refimpl.conformance.registry import all_checks
from refimpl.conformance.results.known import known_deviations
from refimpl.conformance.results.published import published_page
from refimpl.conformance.results.table import checks_as_json

ROOT = Path(__file__).parents[3]
CONTENT = json.loads((ROOT / "benchmarks" / "results" / "conformance.json").read_text(encoding="utf-8"))


def test_the_page_is_that_of_the_numbers() -> None:
    assert (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8") == published_page(CONTENT)


def test_the_numbers_are_of_these_checks_and_these_peers() -> None:
    assert CONTENT["checks"] == json.loads(json.dumps(checks_as_json(all_checks())))
    assert [peer["adapter"] for peer in CONTENT["peers"]] == list(SHIPPED)
    for peer in CONTENT["peers"]:
        deviating = {
            entry["check"]: entry["deviation"] for entry in peer["outcomes"] if entry["status"] == "deviates"
        }
        known = {name: entry.deviation for name, entry in known_deviations(peer["adapter"]).items()}
        assert deviating == known, peer["adapter"]


def test_every_deviation_links_to_a_line() -> None:
    for peer in CONTENT["peers"]:
        for entry in peer["outcomes"]:
            if entry["status"] == "deviates":
                assert entry["link"].startswith("https://github.com/"), entry
                assert "#L" in entry["link"]
