"""What README.md shows is run; what it names exists."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from refimpl.commands.main import COMMANDS, dispatch
from refimpl.commands.start.toml_text import toml_text
from refimpl.interop.run.run_folder import write_config
from refimpl.run.presets import load_config
from refimpl.tables import to_table

WIDTH = 135  # columns
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
SHELL = [line.split("#")[0] for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMAND_LINES = [
    shlex.split(line) for line in SHELL if re.match(r"(refimpl|python -m refimpl|torchrun)", line)
]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_run(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


class Parsed(Exception):
    """The command line was understood; nothing is done."""


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_command_lines_parse(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "--resume" in words:  # the run that it names
        monkeypatch.chdir(tmp_path)
        run = Path(words[words.index("--resume") + 1])
        run.mkdir(parents=True)
        write_config(run, to_table(load_config("tiny")))
    for name in (word for word in words if word.endswith(".toml")):  # the file that `refimpl init` writes
        monkeypatch.chdir(tmp_path)
        Path(name).write_text(toml_text(load_config("tiny"), "", {}), encoding="utf-8")
    if words[0] == "torchrun":
        words = words[words.index("-m") :]
    if words[0] in ("python", "-m"):
        words = words[words.index("-m") + 1 :]
        words = ["refimpl", words[0].removeprefix("refimpl."), *words[1:]]
    parse = tyro.cli

    def parse_only(*arguments: Any, **options: Any) -> None:
        parse(*arguments, **options)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parse_only)
    with pytest.raises(Parsed):
        dispatch(words[1:])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_named(name: str) -> None:
    assert re.search(rf"refimpl[ .]{name}\b", README)


def test_files_of_the_table_exist() -> None:
    table = re.findall(r"^\|.*\|(.*)\|$", README, re.MULTILINE)
    named = [re.findall(r"`([\w/.]+)`", cell) for cell in table]
    for paths in named:
        for path in paths:
            folder = str(Path(paths[0]).parent)
            assert (ROOT / path).exists() or (ROOT / folder / path).exists(), path


def test_pictures_exist() -> None:
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README, re.DOTALL):
        assert (ROOT / picture).is_file()


def test_the_reading_order_is_short_and_on_the_first_screen() -> None:
    section = README.split("## Reading order")[1].split("\n## ")[0]
    files = [ROOT / path for path in re.findall(r"`(refimpl/\S+\.py)`", section)]
    assert 8 <= len(files) <= 12
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 1500
    assert "#reading-order" in "\n".join(README.splitlines()[:20])


@pytest.mark.parametrize("page", ["README.md", "docs", "docs/guides", "docs/paper"])
def test_lines_fit_a_window(page: str) -> None:
    """Of what is written by hand: not of tables, nor of the pages that commands write."""
    place = ROOT / page
    pages = sorted(place.glob("*.md")) if place.is_dir() else [place]
    written = {"claims.md", "conformance.md", "settings.md"}
    wide = [
        f"{path.name}: {line}"
        for path in pages
        if path.name not in written
        for line in path.read_text(encoding="utf-8").splitlines()
        if len(line) > WIDTH and not line.startswith("|")
    ]
    assert wide == []
