"""Pages from templates: what they are made of, and that what is inserted is data."""

import hashlib

import pytest
from markupsafe import Markup

from refimpl.report.page import HERE, folded, page, table, templates, with_code
from tests.report.test_run_page import HOSTILE, Reader

# Of the released files of uPlot 1.6.32 as npm has them; CONTRIBUTING.md says how to renew them.
UPLOT = {
    "uplot.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uplot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uplot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


@pytest.mark.parametrize("name", UPLOT)
def test_the_library_is_as_released(name: str) -> None:
    assert hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest() == UPLOT[name]


def test_templates_escape_whatever_they_insert() -> None:
    made = templates()
    assert made.autoescape is True
    assert made.from_string("{{ x }}").render(x=HOSTILE) == str(Markup.escape(HOSTILE))
    for path in (HERE / "templates").iterdir():
        assert "safe" not in path.read_text(encoding="utf-8").replace("{# ", "").split(), path
        assert "|safe" not in path.read_text(encoding="utf-8")


def test_data_of_scripts_cannot_end_their_element() -> None:
    markup = page("t", [], scripts=("report.js",), data={"words": f"</script>{HOSTILE}", "dash": "\u2028"})
    reader = Reader(markup)
    assert len(reader.of("script")) == 2
    assert "</script>" not in markup.partition('id="data">')[2].partition("</script>")[0]


def test_columns_of_numbers_are_flush_right() -> None:
    reader = Reader(table(("name", "share", "id"), [("1 a", "33.33%", "-1"), ("b", "4%", "2.5")]))
    assert [cell.get("class") for cell in reader.of("td")] == [None, "number", "number"] * 2


def test_code_stands_between_backticks() -> None:
    assert with_code("run `a <b>` now") == "run <code>a &lt;b&gt;</code> now"


def test_folded_parts_are_there_but_closed() -> None:
    reader = Reader(folded("<b>", [Markup("<p>inside</p>")]))
    assert [tag for tag, _ in reader.elements] == ["details", "summary", "p"]
    assert reader.of("details") == [{}]
    assert "<b>" in reader.visible
