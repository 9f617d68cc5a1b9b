"""`refimpl train --help`: the essentials first, everything under `--help-all`."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from refimpl.commands.train import parse
from refimpl.commands.train_help import ESSENTIALS, essentials, field_docs, usage
from refimpl.run.config import Config, TrainConfig
from refimpl.run.presets import load_config, preset_names


def ended(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line that asks for help prints."""
    with pytest.raises(SystemExit) as stop:
        parse(arguments, "refimpl train")
    assert stop.value.code == 0
    return capsys.readouterr().out


def options(text: str) -> list[str]:
    """The options that a help text describes, one for a switch and its opposite."""
    found = re.findall(r"^(?:│ |  )(--[\w.-]+)", text, re.MULTILINE)
    return [option for option in found if option not in ("--help", "--help-all")]


def test_help_shows_the_essentials_and_two_examples(capsys: pytest.CaptureFixture[str]) -> None:
    out = ended(["--help"], capsys)
    assert ended(["-h"], capsys) == out
    assert options(out) == [f"--{place.replace('_', '-')}" for place in ESSENTIALS]
    assert len(ESSENTIALS) <= 16
    assert all(name in out for name in preset_names())
    assert "--help-all" in out
    examples = out.split("examples:\n")[1].split("\n\n")[0].splitlines()
    assert len(examples) == 2
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["refimpl", "train"]
        parse(words[2:])


def test_help_of_a_preset_shows_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["tiny", "--help"], ["tiny", "--train.steps", "3", "-h"]):
        out = " ".join(ended(arguments, capsys).split())
        assert f"Optimizer steps in all stages together. (tiny: {load_config('tiny').train.steps})" in out
        assert "`refimpl train tiny --help-all` lists every setting" in out
    assert "together. (default: 1000)" in " ".join(ended(["--help"], capsys).split())


@pytest.mark.parametrize(
    "arguments", [["--help-all"], ["tiny", "--help-all"], ["tiny", "--help-all", "--help"]]
)
def test_help_all_shows_every_setting(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = ended(arguments, capsys)
    config, shown = load_config("tiny"), set(options(out))
    for section in fields(Config):
        if section.name == "stages":  # a list of tables, for files alone
            continue
        for setting in fields(getattr(config, section.name)):
            name = f"--{section.name}.{setting.name}".replace("_", "-")
            assert name in shown or f"--{section.name.replace('_', '-')}.no-{name.split('.')[1]}" in out, name


@pytest.mark.parametrize("place", ESSENTIALS)
def test_the_essentials_exist_and_are_described(place: str) -> None:
    section, name = place.split(".")
    value = getattr(getattr(load_config("tiny"), section), name)
    assert field_docs(type(getattr(load_config("tiny"), section)))[name]
    option = f"--{place.replace('_', '-')}"
    words = [option] if isinstance(value, bool) else [option, str(value)]
    if place != "lora.rank":
        config, _ = parse(["tiny", *words])
        assert getattr(getattr(config, section), name) == (True if isinstance(value, bool) else value)


def test_field_docs_are_those_of_every_field() -> None:
    assert list(field_docs(TrainConfig)) == [entry.name for entry in fields(TrainConfig)]

    @dataclass
    class Partly:
        first: int
        second: int = 2
        """The second."""

    assert field_docs(Partly) == {"second": "The second."}


def test_without_a_preset_the_usage_is_the_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "refimpl.train"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert usage("python -m refimpl.train") in done.stderr


def test_essentials_name_the_program_and_the_file() -> None:
    text = essentials("python -m refimpl.train", load_config("tiny"), "mine.toml")
    assert text.startswith("usage: python -m refimpl.train PRESET")
    assert "essential settings, with their values in mine.toml:" in text
