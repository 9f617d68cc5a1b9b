"""The lines that install optional packages: those of pyproject.toml, and no release of this package supposed."""

import re
import tomllib
from pathlib import Path

import pytest

from refimpl.packages import OPTIONAL, install_line

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "refimpl").rglob("*.py"))


def test_the_oldest_versions_are_those_of_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {line for lines in project["optional-dependencies"].values() for line in lines}
    told = {f"{name}>={least}" for name, least in OPTIONAL.items() if least}
    assert told <= extras


def test_a_line_installs_one_package() -> None:
    assert install_line("torchao") == 'pip install "torchao>=0.16"'
    assert install_line("k-diffusion", "--no-deps") == "pip install --no-deps k-diffusion"
    with pytest.raises(KeyError):
        install_line("refimpl")


def test_no_message_supposes_a_release() -> None:
    """`pip install refimpl` would fetch whatever has that name: it is installed from a clone or its sdist."""
    supposed = re.compile(r"pip install (-\S+ )*['\"`]?refimpl\b")
    where = [*FILES, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert [path for path in where if supposed.search(path.read_text(encoding="utf-8"))] == []
