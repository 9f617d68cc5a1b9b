"""Help has its colours on a terminal, and no escape of a file or of the command line reaches one."""

import io
import sys
from pathlib import Path

import pytest

from refimpl.commands.main import dispatch
from refimpl.commands.terminal import run_command
from refimpl.printable import STYLE

HOSTILE = r"\u001b[31mred\u001b[2J"  # in TOML


class Terminal(io.StringIO):
    """A stream that says it is a terminal, or not."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that shows colours, to a user who has nothing against them."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown(
    monkeypatch: pytest.MonkeyPatch, *words: str, out: bool = True, error: bool = True
) -> tuple[str, str]:
    """What a command writes to stdout and to stderr, each a terminal or not."""
    streams = Terminal(out), Terminal(error)
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with pytest.raises(SystemExit):
        run_command(lambda: dispatch(list(words)))
    return streams[0].getvalue(), streams[1].getvalue()


@pytest.mark.parametrize(
    "words", [("cache", "--help"), ("estimate", "--help"), ("train", "tiny", "--help-all")]
)
def test_help_is_styled_on_a_terminal_alone(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    styled, _ = shown(monkeypatch, *words)
    assert STYLE.search(styled)
    rest = STYLE.sub("", styled)
    assert all(letter.isprintable() or letter in "\n\t" for letter in rest)
    plain, _ = shown(monkeypatch, *words, out=False)
    assert "\x1b" not in plain
    assert rest.split() == plain.split()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "")])
def test_who_wants_no_styles_gets_none(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert "\x1b" not in shown(monkeypatch, "cache", "--help")[0]


def test_an_empty_no_color_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b" in shown(monkeypatch, "cache", "--help")[0]


def test_an_error_is_styled_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("cache", "--seeds", "1")
    styled, plain = shown(monkeypatch, *words)[1], shown(monkeypatch, *words, error=False)[1]
    assert STYLE.search(styled)
    assert "\x1b" not in plain
    assert STYLE.sub("", styled) == plain


@pytest.mark.parametrize("words", [("--help-all",), ("--sample.prompst", "x"), ("--train.steps", "x")])
def test_styles_of_a_file_are_spelled_out(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A default in the help, and in what is said of a mistyped option, comes from the settings' file."""
    (tmp_path / "run.toml").write_text(f'[sample]\nprompts = ["{HOSTILE}"]\n')
    out, error = shown(monkeypatch, "train", str(tmp_path / "run.toml"), *words)
    assert "\x1b" not in out + error
    assert words[0] != "--help-all" or "\\x1b[31mred" in out
    assert words[0] == "--help-all" or words[0] in error


@pytest.mark.parametrize("word", ["--\x1b[31mred", "--out=\x1b[2J", "\x1b]0;title\x07"])
def test_styles_of_the_command_line_are_spelled_out(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, error = shown(monkeypatch, "cache", "tiny", "--nothing", word)
    assert "\x1b" not in out + error


def test_a_command_itself_writes_no_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(True)
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit):
        run_command(lambda: print("\x1b[31mred", sys.stdout.isatty()))
    assert terminal.getvalue() == "\\x1b[31mred False\n"
