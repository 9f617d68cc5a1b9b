"""The declared mutants, mutants.toml: small mistakes that the tests must notice."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DECLARATIONS = Path(__file__).with_name("mutants.toml")


@dataclass(frozen=True)
class Mutant:
    """One change of one place of one file."""

    id: str
    """name of the mistake"""
    file: str
    """path from the root of the repository"""
    text: str
    """what is replaced; it stands in the file once, or `occurrence` says which one is meant"""
    replacement: str
    """what it is replaced by"""
    tests: tuple[str, ...]
    """test files, or tests in them as pytest names them, of which one must fail"""
    occurrence: int = 0
    """number of the place, counted from 1; 0 where there is only one"""
    rebuild: tuple[str, ...] = ()
    """C++ sources that are compiled again; of a .cpp itself, unless others are named"""
    slow: bool = False
    """whether its tests take more than ten seconds to notice it: tried with --slow or --only"""
    equivalent: str = ""
    """why no test can notice it; empty where one must"""

    @property
    def sources(self) -> tuple[str, ...]:
        """C++ sources of the extension that the change reaches."""
        return self.rebuild or ((self.file,) if self.file.endswith(".cpp") else ())

    def applied_to(self, content: str) -> str:
        """The file's content with the change. Raises ValueError unless the text is found as declared."""
        count = content.count(self.text)
        if not self.text or count < max(self.occurrence, 1) or (count > 1 and not self.occurrence):
            raise ValueError(f"{self.id}: {self.text!r} stands {count} times in {self.file}")
        start = -1
        for _ in range(max(self.occurrence, 1)):
            start = content.index(self.text, start + 1)
        return content[:start] + self.replacement + content[start + len(self.text) :]


def read_mutants() -> list[Mutant]:
    """All declared mutants. Raises TypeError for a field that no mutant has."""
    table = tomllib.loads(DECLARATIONS.read_text(encoding="utf-8"))
    mutants = []
    for entry in table["mutant"]:
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()
        }
        mutants.append(Mutant(**fields))
    return mutants
