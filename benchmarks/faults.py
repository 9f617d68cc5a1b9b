"""What the faults' tests tried and lost, from their counts to results/faults.json.

python -m benchmarks.faults COUNTS        COUNTS as `nox -s faults` has the tests write it
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.timing import write


def summed(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The counts by test, with the totals; a test that ran twice counts by its last run."""
    by_test = {line["test"]: {name: line[name] for name in line if name != "test"} for line in lines}
    return {
        "tried": sum(counts["tried"] for counts in by_test.values()),
        "lost": sum(counts["lost"] for counts in by_test.values()),
        "tests": dict(sorted(by_test.items())),
    }


def main() -> None:
    """Reads the counts and writes the JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.faults", description=__doc__)
    parser.add_argument("counts", type=Path)
    text = parser.parse_args().counts.read_text(encoding="utf-8")
    counts = summed([json.loads(line) for line in text.splitlines()])
    print(f"{counts['tried']} tried, {counts['lost']} lost")
    print(write("faults", counts))


if __name__ == "__main__":
    main()
