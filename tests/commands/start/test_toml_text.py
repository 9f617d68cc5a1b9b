"""The file that is written says what was chosen, and why."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.commands.start.toml_text import toml_text, toml_value
from refimpl.run.config import Config
from refimpl.run.presets import load_config, preset_names
from refimpl.tables import from_table, to_table


def read(text: str) -> Config:
    return from_table(Config, tomllib.loads(text), "test")


@pytest.mark.parametrize("name", [name for name in preset_names() if not load_config(name).stages])
def test_a_file_reads_as_what_was_written(name: str) -> None:
    config = load_config(name)
    assert read(toml_text(config, "header", {})) == config


def test_comments_give_the_reason_and_no_more_than_a_sentence() -> None:
    config = load_config("tiny")
    text = toml_text(
        config, "First line.\n\nThird line.", {"train.threads": "one core is enough", "data.folder": "x"}
    )
    assert text.startswith("# First line.\n#\n# Third line.\n")
    lines = text.splitlines()
    at = lines.index("threads = 1")
    comment = " ".join(line.removeprefix("# ") for line in lines[:at] if line.startswith("#"))
    assert comment.endswith("CPU threads per rank. Here: one core is enough.")
    assert "epsilon" not in text  # a default that few change
    assert max(map(len, lines)) <= 100
    assert all(
        lines[at - 1].startswith("#") for at, line in enumerate(lines) if " = " in line and line[0] != "#"
    )
    scale = toml_text(config, "", {"latents.scale_shift": "measured"})
    assert "novelai_anime (N Fig. 8), measure" in " ".join(scale.replace("\n# ", " ").split())


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_survives(text: str) -> None:
    assert tomllib.loads(f"a = {toml_value(text)}") == {"a": text}


@settings(max_examples=30)
@given(
    st.recursive(
        st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False),
        st.lists,
    )
)
def test_any_value_survives(value: object) -> None:
    assert tomllib.loads(f"a = {toml_value(value)}") == {"a": value}


def test_values_of_a_configuration_survive() -> None:
    table = to_table(load_config("tiny"))
    assert tomllib.loads(f"a = {toml_value(table['sample']['prompts'])}")["a"] == table["sample"]["prompts"]
