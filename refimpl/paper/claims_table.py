"""The 131 testable statements of N, S and R, each with its answer, its command and its test (claims.tsv).

Kinds: `pinned`, an identity, number or algorithm that a test holds to the code; `computed`, a number with its
interval by `refimpl claims --computed`; `trained`, an effect measured on small networks;
`cannot`, with the reason.
"""

import csv
from dataclasses import dataclass, fields
from pathlib import Path

from refimpl.errors import InputError

TABLE = Path(__file__).with_name("claims.tsv")
SOURCES = {
    "N": "Improvements to SDXL in NovelAI Diffusion V3 (arXiv 2409.15997)",
    "S": "SDXL: Improving Latent Diffusion Models (arXiv 2307.01952)",
    "R": "README of SDXL-Training-Improvements, a community trainer",
}
KINDS = ("pinned", "computed", "trained", "cannot")
COMPUTED_COMMAND = "refimpl claims --computed"
FIGURES_COMMAND = "refimpl figures"
TRAINED_COMMAND = "refimpl claims --trained"


@dataclass(frozen=True)
class Claim:
    """One statement, in this project's words."""

    id: str
    """Its letter, that of the source, and a number."""
    section: str
    """Where it stands in the source."""
    kind: str
    """One of KINDS."""
    statement: str
    """What is claimed."""
    answer: str
    """The pinned value, or the reason why it can't be measured here."""
    measure: str
    """Name of the measure in the results that answers it; empty for none."""
    test: str
    """Test that pins the answer, below tests/; empty for none."""

    @property
    def command(self) -> str:
        """What a reader runs to see it: of the package, or a test; empty where nothing can be run."""
        if self.kind == "computed":
            return COMPUTED_COMMAND
        if self.kind == "trained":
            return FIGURES_COMMAND if self.measure.startswith("figure ") else TRAINED_COMMAND
        return f"pytest tests/{self.test}" if self.test else ""


def read_claims(path: Path = TABLE) -> list[Claim]:
    """All claims, in the order of the table. Raises InputError for a row that is none."""
    names = [field.name for field in fields(Claim)]
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    if head != names:
        raise InputError(f"{path}: the columns are {', '.join(head)}; they must be {', '.join(names)}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names) or row[names.index("kind")] not in KINDS:
            raise InputError(
                f"{path}, line {number}: not a claim; give {', '.join(names)}, kind one of {KINDS}"
            )
    return [Claim(*row) for row in rows]
