"""Measured numbers as JSON: what `refimpl claims` writes, what the package keeps, and what docs/claims.md shows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from refimpl.errors import InputError
from refimpl.paper.computed.quantity import COVERAGE, RESAMPLES, SEED, Quantity
from refimpl.storage.atomic import replace_text

KEPT = Path(__file__).parent / "results"
COMPUTED, TRAINED = KEPT / "computed.json", KEPT / "trained.json"
DIGITS = 6  # significant, of the numbers kept: more differ between processors

Measured = Mapping[str, Sequence[Quantity]]


def write_results(path: Path, command: str, measured: Measured) -> None:
    """Writes measures: name → quantities. Intervals are of 95 %; equal ends mean an exact number."""
    content = {
        "command": command,
        "interval": {"coverage": COVERAGE, "resamples": RESAMPLES, "seed": SEED},
        "measures": {name: [_rounded(each) for each in quantities] for name, quantities in measured.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_results(path: Path) -> dict[str, list[Quantity]]:
    """The measures of a file that `write_results` wrote; none where it does not exist.

    Raises InputError when it is another file.
    """
    if not path.is_file():
        return {}
    try:
        measures = json.loads(path.read_text(encoding="utf-8"))["measures"]
        return {name: [Quantity(**each) for each in rows] for name, rows in measures.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a file of results that `refimpl claims` wrote ({error})") from error


def kept_results() -> dict[str, list[Quantity]]:
    """All measures that the package keeps, computed and trained, by name."""
    return read_results(COMPUTED) | read_results(TRAINED)


def _rounded(quantity: Quantity) -> dict[str, str | float]:
    return {
        name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for name, value in asdict(quantity).items()
    }
