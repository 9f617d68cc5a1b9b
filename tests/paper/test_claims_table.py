"""All 131 claims are answered: their tests exist, their commands parse, and their measures are kept."""

import ast
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

from refimpl.commands.main import COMMANDS
from refimpl.errors import InputError
from refimpl.paper.claims_table import KINDS, read_claims
from refimpl.paper.computed.measures import MEASURES
from refimpl.paper.results_file import kept_results

TESTS = Path(__file__).parents[1]
COUNTS = {"N": 69, "S": 35, "R": 27}


@lru_cache
def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.fixture(scope="module")
def claims():
    return read_claims()


def test_there_are_131_each_once_and_in_order(claims):
    expected = [f"{letter}{number:02d}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
    assert [claim.id for claim in claims] == expected
    assert len(expected) == 131
    assert set(Counter(claim.kind for claim in claims)) == set(KINDS)


def test_every_test_that_is_named_exists(claims):
    for claim in claims:
        if claim.test:
            path, _, name = claim.test.partition("::")
            assert name in names_in(TESTS / path), f"{claim.id}: tests/{claim.test} is not there"


def test_every_claim_has_its_answer(claims):
    kept = kept_results()
    for claim in claims:
        if claim.kind in ("pinned", "computed"):
            assert claim.test, f"{claim.id} is pinned by no test"
        if claim.kind == "computed":
            assert claim.measure in MEASURES
            assert kept[claim.measure]
        if claim.kind == "trained":
            assert claim.measure, f"{claim.id} names no experiment"
            assert not claim.answer, f"{claim.id}: what is measured stands in the results"
        else:
            assert claim.answer or claim.measure, f"{claim.id} has no answer"
        if claim.kind == "cannot":
            assert not claim.measure
        if claim.measure in kept:
            assert claim.test, f"{claim.id}: a number that no test pins"
    assert {claim.measure for claim in claims} >= set(MEASURES)


def test_every_command_parses(claims):
    for claim in claims:
        words = claim.command.split()
        assert not words or words[0] in ("refimpl", "pytest"), claim.id
        if words[:1] == ["refimpl"]:
            assert words[1] in COMMANDS, f"{claim.id}: {claim.command}"
    assert {claim.command for claim in claims if claim.kind == "computed"} == {"refimpl claims --computed"}


def test_a_row_that_is_no_claim_is_named(tmp_path):
    path = tmp_path / "claims.tsv"
    head = "id\tsection\tkind\tstatement\tanswer\tmeasure\ttest\n"
    for content in (head + "N01\t§1\tsure\tx\ty\t\t\n", head + "N01\n"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match="line 2: not a claim"):
            read_claims(path)
    path.write_text("id\n", encoding="utf-8")
    with pytest.raises(InputError, match="columns"):
        read_claims(path)
