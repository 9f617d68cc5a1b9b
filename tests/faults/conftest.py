"""The count of what was tried and what was lost, which `benchmarks.faults` reads (REFIMPL_FAULTS names its file)."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

COUNTS = "REFIMPL_FAULTS"  # a file of JSON lines; without it nothing is written


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[..., None]:
    """tally(tried=…, lost=…, **figures): adds one line to the counts, named after the test; asserts nothing."""

    def write(tried: int, lost: int, **figures: float) -> None:
        if COUNTS in os.environ:
            line = json.dumps({"test": request.node.nodeid, "tried": tried, "lost": lost, **figures})
            with Path(os.environ[COUNTS]).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    return write
