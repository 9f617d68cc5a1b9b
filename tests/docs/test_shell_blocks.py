"""Every command in a shell block of README and docs runs, in this process, on small files under the names used.

What can't run here is in ELSEWHERE by its reason; its words are checked all the same.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from refimpl.commands.main import dispatch
from refimpl.commands.terminal import run_command
from tests.docs import scene
from tests.docs.shell_blocks import ROOT, Command, all_commands, indented_commands, pages

COMMANDS = all_commands()
LINES = [command.line for command in COMMANDS]
NOXFILE = (ROOT / "noxfile.py").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def names_a_session(line: str) -> None:
    for name in re.findall(r"(?:-s|\s)(\w+)", line.partition("nox -s")[2]):
        assert re.search(rf"^def {name}\(", NOXFILE, re.MULTILINE), name


def names_extras(line: str) -> None:
    for names in re.findall(r"\[([\w,]+)\]", line):
        for name in names.split(","):
            assert re.search(rf"^{name} = \[", PROJECT, re.MULTILINE), name


# What begins so is not run, why, and what is checked instead, besides that a shell can read it.
ELSEWHERE: dict[str, tuple[str, Callable[[str], None]]] = {
    "pip install": ("it downloads and compiles; tests/meta/test_packaging.py installs", names_extras),
    "REFIMPL_CUDA=1": ("it needs nvcc and compiles for minutes: nox -s cuda_build", names_extras),
    "nox -s": ("it builds an environment of its own", names_a_session),
    "refimpl studio": (
        "it serves until it is interrupted; tests/studio/test_serve.py starts it",
        names_extras,
    ),
    "pytest --pyargs refimpl.conformance": ("tests/conformance/test_plugin.py runs the same", names_extras),
}
# Cut to what a test has time for: how a command begins, and the options that are added or take the place of its own.
TRAINED = {"--train.device": "cpu", "--sample.steps": "1", "--sample.guidance": "1"}
SHORT: dict[str, dict[str, str]] = {
    "refimpl train ": {"--train.steps": "2", **TRAINED},
    "refimpl train --resume": {"--train.steps": "3", **TRAINED},
    "refimpl init my-images": {"--train.steps": "2", "--latents.train-steps": "1"},
    "refimpl data check images.index": {"--batch-size": "2", "--world-size": "2"},
    "refimpl train-decoder": {"--decoder.steps": "1", "--decoder.batch-size": "2", "--decoder.size": "32"},
    "refimpl conformance refimpl": {"--examples": "1", "--only": "target.pure_noise"},
}
MANY = {"--train.micro-batches": "2"}  # in place of what a page says, where it says it
ESTIMATE = "refimpl estimate"  # counts the presets' own networks for seconds, so that is slow
# What a command of the pages ends with, where that is not 0: this card is too small, as the page says.
ENDS = {"refimpl estimate novelai_v3 --gpu a100-40 --train.batch-size 2": 1}
SLOW_PAGES = ("docs/conformance_adapter.md",)  # starts a process for each command; README's do the same


def elsewhere(command: Command) -> str:
    return next((start for start in ELSEWHERE if command.line.startswith(start)), "")


def test_every_command_of_the_pages_is_in_a_block_that_says_so() -> None:
    assert len(COMMANDS) >= 60
    for path in pages():
        if path.name != "CONTRIBUTING.md":  # for developers: its commands start tests
            assert not indented_commands(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("start", ELSEWHERE)
def test_what_runs_elsewhere_can_be_read(start: str) -> None:
    lines = [command.line for command in COMMANDS if elsewhere(command) == start]
    assert lines, "no page has it: leave it out of ELSEWHERE"
    reason, check = ELSEWHERE[start]
    assert reason
    for line in lines:
        assert subprocess.run(["bash", "-n", "-c", line], capture_output=True).returncode == 0
        check(line)


def shortened(words: list[str]) -> list[str]:
    """The command's words with the options of SHORT, and of MANY, in place of its own."""
    line = " ".join(words)
    cut = dict(item for start in SHORT if line.startswith(start) for item in SHORT[start].items())
    for option, value in {**cut, **{name: MANY[name] for name in MANY if name in words}}.items():
        if option in words:
            words = [
                value if before == option else word for before, word in zip(["", *words], words, strict=False)
            ]
        else:
            words = [*words, option, value]
    return words


def as_one_process(words: list[str]) -> list[str]:
    """`torchrun … -m refimpl.X` and `python -m refimpl.X` as `refimpl X`: here, one process does it."""
    if words[0] in ("torchrun", "python"):
        words = words[words.index("-m") + 1 :]
        return ["refimpl", words[0].removeprefix("refimpl."), *words[1:]]
    return words


def expanded(words: list[str]) -> list[str]:
    """Patterns as a shell expands them, and variables of the page."""
    out: list[str] = []
    for word in words:
        out += [str(path) for path in sorted(Path().glob(word))] if "*" in word else [word]
    return out


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages presuppose; no test changes it."""
    folder = tmp_path_factory.mktemp("prepared")
    scene.prepare(folder)
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the pages presuppose, as the working directory."""
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))  # of the checks' process
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


def ending(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command, and what it said."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: dispatch(words[1:]))
    said = capsys.readouterr()
    return int(stop.value.code or 0), f"{' '.join(words)}\n{said.out}\n{said.err}"


PAGES = sorted({command.page for command in COMMANDS if not elsewhere(command)})


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW_PAGES else ()) for page in PAGES]
)
def test_the_commands_of_a_page_run_in_their_order(
    page: str, here: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scene.small_presets(prepared / "presets"):
        for command in (command for command in COMMANDS if command.page == page and not elsewhere(command)):
            code, said = ending(shortened(expanded(as_one_process(command.words))), capsys)
            assert code == 0, said


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", sorted({line for line in LINES if re.match(rf"{ESTIMATE} \w+(?: |$)", line)})
)
def test_estimates_of_presets_end_as_the_page_says(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = ending(line.split(), capsys)
    assert code == ENDS.get(line, 0), said
