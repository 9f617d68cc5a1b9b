"""Progress off a terminal is lines with the time, and on one the usual bar."""

import io
import re
import sys
from typing import Any

import pytest

from refimpl import progress
from refimpl.progress import Progress, shown

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that Progress sees, in its only entry."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_off_a_terminal_lines_come_now_and_then_and_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(1000, "cache", "images") as work:
        for _ in range(100):
            clock[0] += 1
            work.update(10)
    printed = capsys.readouterr().err
    lines = printed.splitlines()
    assert len(lines) == 100 // int(progress.SECONDS_BETWEEN_LINES) + 1
    assert re.fullmatch(LINE + r"cache: 300 of 1000 images, 10/s, 70 s left", lines[0])
    assert re.fullmatch(LINE + r"cache: 1000 of 1000 images, 10/s", lines[-1])
    assert "\r" not in printed


def test_training_says_a_line_where_it_is_asked_to(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    work = Progress(4000, "train", "steps", initial=1000, on_report=True)
    for _ in range(3):
        clock[0] += 1000
        work.update(500)
        work.note(loss="0.5")
    assert not capsys.readouterr().err
    work.report()
    work.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(LINE + r"train: 2500 of 4000 steps, 0\.5/s, 50 min left, loss 0\.5", line)


def test_items_pass_and_an_unknown_total_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shown("abc", 3, "samples", "grids")) == ["a", "b", "c"]
    with Progress(None, "demo", "images") as work:
        work.update(2)
        work.total = 5
        work.update(3)
    assert [re.sub(LINE, "", line).split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "samples: 3 of 3 grids", "demo: 5 of 5 images",
    ]  # fmt: skip


def test_nothing_is_shown_where_nothing_is_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, "cache", "images", is_shown=False) as work:
        work.update(3)
        work.report()
    assert not capsys.readouterr().err


def test_on_a_terminal_it_is_tqdms_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream: Any = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(2, "train", "steps") as work:
        work.note(loss="0.25")
        work.report()
        work.update(2)
    assert "\r" in stream.getvalue()
    assert "train: 100%" in stream.getvalue()
    assert not re.search(LINE, stream.getvalue())
