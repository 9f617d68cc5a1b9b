"""The generated reference: docstrings as they read, every module on a page, every setting with what it is."""

import dataclasses
import typing

import pytest

from docs.ext.api_pages import PACKAGE, api_pages
from docs.ext.docstrings import as_rst
from docs.ext.settings_page import settings_page, type_name
from refimpl.run.config import Config


def test_lines_of_shapes_stand_as_they_are() -> None:
    lines = [
        "What `x_t` does, a*b.",
        "",
        "x0  [B]        eps  [B]",
        "returns  [B]  in",
        "         float64",
        "Raises.",
    ]
    assert as_rst(lines) == [
        r"What \ ``x_t``\  does, a\*b.",
        "",
        ".. code-block:: text",
        "   :class: shapes",
        "",
        "   x0  [B]        eps  [B]",
        "   returns  [B]  in float64",
        "",
        "Raises.",
        "",
    ]


def test_a_sentence_that_goes_on_below_shapes_stays_with_them() -> None:
    assert as_rst(["returns  [T]  units of", "sigma² times"])[3] == "   returns  [T]  units of sigma² times"


def test_indented_layouts_and_lists_are_kept() -> None:
    assert as_rst(["    a  1", "    b  2"])[3:5] == ["       a  1", "       b  2"]
    assert as_rst(["- one", "  goes on", "- two_"]) == ["- one", "  goes on", r"- two\_", ""]


def test_every_public_module_is_on_a_page() -> None:
    text = "\n".join(api_pages().values())
    for path in PACKAGE.rglob("*.py"):
        names = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        if path.stem != "__main__" and names != "refimpl.conformance.test_conformance":
            assert f".. automodule:: {names}\n" in text, names


def test_pages_lead_to_those_of_the_folders_within() -> None:
    pages = api_pages()
    reached = {"refimpl"}
    for page in pages.values():
        reached |= {line.strip() for line in page.partition("Folders in it")[2].splitlines() if line.strip()}
    assert {f"{name}.rst" for name in reached} == set(pages)


def test_every_setting_has_its_type_default_and_presets() -> None:
    page = settings_page()
    for section in dataclasses.fields(Config):
        kind = typing.get_type_hints(Config)[section.name]
        if dataclasses.is_dataclass(kind):
            for entry in dataclasses.fields(kind):
                assert f"\n### {section.name}.{entry.name}\n" in page
    part = page.partition("### train.precision")[2].partition("###")[0]
    assert 'text; default `"tf32"`; `"bf16"` in' in part
    assert "`lora_24gb`" in part
    assert "### stages.from_step" in page


def test_types_in_words() -> None:
    assert type_name(tuple[str, ...]) == "list of texts"
    assert type_name(tuple[tuple[int, int], ...]) == "list of pairs of integers"
    assert type_name(float | None) == "number, or left out"
    assert type_name(typing.Literal["a", 1]) == 'one of `"a"`, `1`'


def test_type_variables_are_not_looked_for() -> None:
    """They have no place on the site. The module is not named above: docutils is no requirement of the tests."""
    typenames = pytest.importorskip("docs.ext.typenames", reason="Sphinx is not installed")
    import refimpl.diffusion.philox_words as read

    assert isinstance(read.Words, typing.TypeVar)
    assert not typenames.is_ours(f"{read.__name__}.Words")
    assert typenames.is_ours(f"{read.__name__}.philox4x32_words")
    assert typenames.is_ours("UNet")
    assert not typenames.is_ours("str")
    assert not typenames.is_ours("torch.Tensor")
