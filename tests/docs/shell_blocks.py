"""The shell blocks of the documentation: which there are, and the commands in each."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
GENERATED = (
    "docs/settings.md",
    "docs/_build",
    "docs/api",
    "docs/drawn",
)  # by `nox -s docs`, if it was run here
PROGRAMS = (
    "refimpl",
    "python -m refimpl",
    "torchrun",
    "pip",
    "nox",
    "pytest",
    "docker",
    "sbatch",
    "git",
    "cd",
)


class Command(NamedTuple):
    """One command of a block."""

    page: str
    """Path of its page, from the root of the repository."""
    line: str
    """What the page says, without its comment, continued lines joined."""

    @property
    def words(self) -> list[str]:
        """The command as a shell splits it."""
        return shlex.split(self.line)


def pages() -> list[Path]:
    """README, CONTRIBUTING and every page under docs that is written by hand."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if not path.relative_to(ROOT).as_posix().startswith(GENERATED)]


def commands_of(page: str, text: str) -> Iterator[Command]:
    """The commands of every block of a page, in order; `a && b` is two."""
    for block in FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            code = re.sub(r"(?:^|\s)#.*", "", line).strip()
            for part in re.split(r"\s+&&\s+", code):
                if part:
                    yield Command(page, " ".join(part.split()))


def all_commands() -> list[Command]:
    """The commands of every page."""
    return [
        command
        for path in pages()
        for command in commands_of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]


def indented_commands(text: str) -> list[str]:
    """Commands that stand in a block of no language, where no test would see them."""
    pattern = rf"^ {{4,}}(?:[A-Z_]+=\S+ )*(?:{'|'.join(map(re.escape, PROGRAMS))}) .*"
    return re.findall(pattern, text, re.MULTILINE)
