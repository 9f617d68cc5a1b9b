"""The cost of being looked at: shares and pairs come from the right blocks, and the studio's page tells them."""

import json
from pathlib import Path

import pytest

from benchmarks.bench_watch import GOAL, Block, clocked, compared
from benchmarks.timing import RESULTS

DOCS = Path(__file__).parents[2] / "docs" / "studio.md"


def block(is_watched: bool, seconds: float) -> Block:
    """Two steps of that many seconds each, of which looking took a hundredth and a row two."""
    watched = {"looks": [seconds / 100] * 2, "written": [seconds / 50]} if is_watched else {}
    return Block(is_watched, [seconds] * 2, computed=[seconds / 10], **watched)


def test_pairs_are_told_whichever_came_first() -> None:
    """Each watched block took a tenth longer than the other of its pair."""
    blocks = [block(True, 1.1), block(False, 1.0), block(False, 2.0), block(True, 2.2)]
    found = compared(blocks)
    assert found["slowed, by pairs"]["mean"] == pytest.approx(0.1)
    assert found["slowed, by pairs"]["standard_error"] == pytest.approx(0)
    assert found["share of a step"]["median"] == pytest.approx(0.02)
    assert found["step"]["median_ms"] == pytest.approx(1500)
    assert found["look"]["median_ms"] == pytest.approx(16.5)


def test_blocks_without_their_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compared([block(True, 1.0)] * 3)


def test_a_call_is_timed_and_returns_what_it_returned() -> None:
    seconds: list[float] = []
    assert clocked(seconds, lambda: sum(range(1000))) == 499500
    assert len(seconds) == 1
    assert seconds[0] > 0


def test_the_docs_tell_what_was_measured() -> None:
    found = json.loads((RESULTS / "watch.json").read_text())
    share, slowed = found["share of a step"], found["slowed, by pairs"]
    assert share["mean"] < GOAL
    text = " ".join(DOCS.read_text(encoding="utf-8").split())
    for words in (
        f"{share['mean']:.2%}".replace("%", " %"),
        f"{slowed['mean']:+.2%} ± {slowed['standard_error']:.2%}".replace("%", " %").replace("-", "−"),
        f"{found['pairs']} pairs",
        f"{1e3 * found['look']['median_ms']:.0f} µs",
    ):
        assert words in text, words
