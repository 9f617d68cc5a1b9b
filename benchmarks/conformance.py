"""Runs the conformance suite on this project and every peer, and publishes what it finds.

    REFIMPL_PEERS=DIR python -m benchmarks.conformance

writes benchmarks/results/conformance.json and docs/conformance.md. DIR holds the checkouts of the peers that are not
installed, each at the commit its adapter names; a peer whose checkout is absent is named and left out, and then
neither file is written.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from refimpl.conformance.evaluate import Effort
from refimpl.conformance.load import SHIPPED
from refimpl.conformance.registry import all_checks
from refimpl.conformance.results.known import known_deviations
from refimpl.conformance.results.published import published_page
from refimpl.conformance.results.table import Report, as_json, checks_as_json, complaints, summary
from refimpl.conformance.worker import Worker
from refimpl.errors import InputError
from refimpl.storage.atomic import replace_text

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "conformance.json", ROOT / "docs" / "conformance.md"
PROCESSES = 2  # peers tested at once, each in a process of its own with one thread
EFFORT = Effort(examples=50, call_seconds=60.0, check_seconds=300.0)  # 2,000 crops, on a busy machine


def tested(name: str) -> Report | str:
    """Every check on one peer, or why it is absent."""
    try:
        with Worker(name, EFFORT) as worker:
            outcomes = [worker.run(check) for check in all_checks()]
            return Report(name, worker.title, worker.version, worker.links, outcomes)
    except InputError as error:
        return str(error)


def main() -> None:
    """Runs all peers, two at a time, and writes the files if all were there and as they are known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="one peer; nothing is written")
    only = parser.parse_args().only
    checks, peers, wrong = all_checks(), [], []
    started = time.monotonic()
    names = [only] if only else list(SHIPPED)
    with ThreadPoolExecutor(PROCESSES) as pool:
        found_peers = list(pool.map(tested, names))
    for name, peer in zip(names, found_peers, strict=True):
        if isinstance(peer, str):
            print(f"{name}: skipped: {peer}")
            wrong.append(name)
            continue
        known = known_deviations(name)
        print(f"{summary(peer)} ({sum(outcome.seconds for outcome in peer.outcomes):.0f} s)", flush=True)
        found = complaints(peer, checks, known)
        print(*found, sep="\n", end="\n" if found else "")
        wrong += found
        peers.append(as_json(peer, checks, known))
    print(f"{len(peers)} peers in {time.monotonic() - started:.0f} s")
    if wrong or only:
        sys.exit(f"{len(wrong)} things are not as they are known to be; nothing was written" if wrong else 0)
    content = {
        "command": "python -m benchmarks.conformance",
        "checks": checks_as_json(checks),
        "peers": peers,
    }
    replace_text(RESULTS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    replace_text(PAGE, published_page(content))


if __name__ == "__main__":
    main()
