"""Headlines of the demo: whether its targets are reached, and what a poor sample means."""

from refimpl.report.headlines.demo import demo_headlines
from refimpl.report.run_page import Criterion
from tests.report.test_run_page import shown

REACHED = Criterion("black", 0.05, "< 0.12", True)


def test_reached_targets_and_what_a_blur_means() -> None:
    good, blur = demo_headlines([REACHED, REACHED], "photograph, cat", 78, 64, 2_984_260)
    assert (good.severity, good.text) == (
        "good",
        "All 2 targets are reached: the whole pipeline works on this machine.",
    )
    assert blur.severity == "note"
    assert "“photograph, cat” is a blur" in shown(blur.text)
    for words in ("3.0 million parameters", "64 pixels", "78 cuts of photographs"):
        assert words in blur.next, words


def test_missed_targets_are_listed() -> None:
    missed = Criterion("red", 0.5, "> 0.75", False)
    found = demo_headlines([REACHED, missed], "x", 1, 64, 1)[0]
    assert (found.severity, found.text) == ("bad", "1 of 2 targets are missed.")
    assert list(map(shown, found.listed)) == ["red: 0.500, wanted > 0.75"]
