"""The paper's pages show what is there: functions, tests and figures by their names, and every claim on one page."""

import re
from collections import Counter
from pathlib import Path

import pytest

from docs.ext.claim_rows import named, table_of
from docs.ext.definitions import ROOT, included, lines_of
from docs.ext.drawn import DRAWN, FIGURES

PAPER = sorted((ROOT / "docs" / "paper").glob("*.md"))
CLAIMS = [*named("N01-N69"), *named("S01-S35"), *named("R01-R27")]

# Sections that describe what is implemented; a heading may join several of one paper, as in "S §2.1, §2.2".
SECTIONS = [
    "N §2.1", "N §2.2", "N §2.3", "N §2.4", "N §4.1", "N §4.2", "N §4.3", "N §4.4", "N §5", "N App. A", "N App. B",
    "S §2.1", "S §2.2", "S §2.3", "S §2.4", "S §2.5", "S §2.6", "S Tab. 1", "S Tab. 3",
]  # fmt: skip

EXAMPLE = """
@mark(
    {**a, "b": 1},
)
def first():
    return 1

class Kind:
    def method(self):
        return 2
"""


def arguments(page: Path, directive: str) -> list[str]:
    return re.findall(rf"^```\{{{directive}\}} (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PAPER, ids=lambda page: page.stem)
def test_a_page_shows_functions_and_tests_that_exist(page: Path) -> None:
    shown, pinned = arguments(page, "shown"), arguments(page, "pinned")
    assert shown
    assert pinned
    for argument in shown:
        module, name = argument.split(":")
        assert f":caption: '{module.replace('.', '/')}.py: {name}'" in included(
            f"{module.replace('.', '/')}.py", name
        )
    for argument in pinned:
        path, name = argument.split(":")
        assert name.startswith("test_")
        included(path, name)


def test_every_equation_has_a_function_after_it() -> None:
    for page in PAPER:
        kinds = re.findall(r"^```\{(math|shown|pinned)\}", page.read_text(encoding="utf-8"), re.MULTILINE)
        last = max((place for place, kind in enumerate(kinds) if kind == "math"), default=-1)
        assert last < 0 or "shown" in kinds[last:], page


def test_every_page_with_an_equation_has_a_figure() -> None:
    for page in PAPER:
        text = page.read_text(encoding="utf-8")
        assert "```{math}" not in text or "```{figure} ../drawn/" in text, page


def test_every_section_is_the_heading_of_one_page_or_more() -> None:
    headings = "\n".join(
        heading
        for page in PAPER
        for heading in re.findall(r"^#+ .+$", page.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert [section for section in SECTIONS if not re.search(rf"{re.escape(section)}\b", headings)] == []


def test_pages_are_all_in_the_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^paper/(.+)$", index, re.MULTILINE)) == [page.stem for page in PAPER]


def test_definitions_are_found_with_their_decorators() -> None:
    assert lines_of(EXAMPLE, "first") == (2, 6)
    assert lines_of(EXAMPLE, "Kind.method") == (9, 10)
    with pytest.raises(ValueError, match="no Kind\\.gone"):
        lines_of(EXAMPLE, "Kind.gone")


def test_every_figure_is_drawn_and_shown_once() -> None:
    used = [
        name for page in PAPER for name in re.findall(r"drawn/(\w+)\.png", page.read_text(encoding="utf-8"))
    ]
    assert sorted(used) == sorted(DRAWN)


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_figures_are_drawn(draw) -> None:
    assert draw().axes


def test_every_claim_is_on_one_page() -> None:
    shown = Counter(name for page in PAPER for words in arguments(page, "claims") for name in named(words))
    assert sorted(shown) == sorted(CLAIMS)
    assert [name for name, count in shown.items() if count > 1] == []


def test_claims_are_named_one_by_one_and_in_ranges() -> None:
    assert named("N08-N10 R27") == ["N08", "N09", "N10", "R27"]
    with pytest.raises(ValueError, match="'N1'"):
        named("N1")


def test_rows_of_claims_come_with_the_head_of_their_table() -> None:
    first = ["| id | value |", "| --- | --- |", "| N01 | 1 |", "| N02 | 2 |"]
    second = ["| id | other |", "|---|---|", "| `S01` | 3 |"]
    page = "\n".join(["# A", "", *first, "", *second])
    assert table_of(page, ["N02", "S01"]) == [*first[:2], first[3], "", *second]
    assert table_of(page, ["N01", "N02"]) == first
    assert table_of(page, ["R01"]) == []
