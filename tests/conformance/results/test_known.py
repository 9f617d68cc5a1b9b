"""The strict file of known deviations: what is new, what is gone and what has changed is noticed."""

from pathlib import Path

import pytest

from refimpl.conformance.check import Outcome
from refimpl.conformance.load import SHIPPED
from refimpl.conformance.registry import all_checks
from refimpl.conformance.results.known import Known, judge, known_deviations, measured
from refimpl.errors import InputError

CHECK = all_checks()["grid.trailing_length"]
KNOWN = Known("62", "Steps in floating point.")


def outcome(status: str, deviation: float | None = None, text: str = "") -> Outcome:
    return Outcome(CHECK.name, status, deviation, text, "n = 61")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("found", "known", "complaint"),
    [
        (outcome("conforms", 0.0), None, ""),
        (outcome("choice", 3.0), None, ""),
        (outcome("not offered"), None, ""),
        (outcome("deviates", 62.0), KNOWN, ""),
        (outcome("deviates", 62.0), None, r"deviates by 62 of 1000 n \(at most 0\)\nsimplest case: n = 61"),
        (outcome("deviates", 63.0), KNOWN, "deviates by 63 .*known to be 62"),
        (outcome("conforms", 0.0), KNOWN, r"known deviation \(62 of 1000 n\) no longer occurs"),
        (outcome("not offered"), KNOWN, "does not offer it any more"),
        (outcome("deviates", None, "grid raised KeyError"), None, "deviates by fault(.|\n)*KeyError"),
        (outcome("deviates", None), Known("fault", "Raises."), ""),
    ],
)
def test_judgement(found: Outcome, known: Known | None, complaint: str) -> None:
    said = judge(CHECK, found, known)
    assert bool(said) == bool(complaint)
    if complaint:
        import re

        assert re.search(complaint, said), said


@pytest.mark.parametrize(
    ("deviation", "printed"),
    [(62.0, "62"), (256.0, "256"), (1.9021e-5, "1.9e-05"), (0.0137, "0.014"), (97.95, "98")],
)
def test_sizes_are_written_to_two_digits_and_counts_exactly(deviation: float, printed: str) -> None:
    assert measured(outcome("deviates", deviation)) == printed


def test_the_shipped_file_names_peers_and_checks_that_exist_and_says_all_three_things() -> None:
    import tomllib

    from refimpl.conformance.results.known import SHIPPED as FILE

    peers = tomllib.loads(FILE.read_text(encoding="utf-8"))
    assert set(peers) <= set(SHIPPED)
    assert "refimpl" not in peers
    for peer in peers:
        for name, known in known_deviations(peer).items():
            assert all_checks()[name].kind == "must", name
            assert known.chose.endswith("."), (peer, name)
            assert known.costs.endswith("."), (peer, name)
            assert known.mend.endswith("."), (peer, name)


def test_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    file = tmp_path / "known.toml"
    with pytest.raises(InputError, match=r"known\.toml"):
        known_deviations("x", str(file))
    file.write_text("[grid")
    with pytest.raises(InputError, match=r"known\.toml"):
        known_deviations("x", str(file))
    file.write_text('[grid.length]\ndeviatoin = "1"\nchose = "x"')
    with pytest.raises(InputError, match="deviation"):
        known_deviations("x", str(file))
    assert known_deviations("an adapter without any") == {}
