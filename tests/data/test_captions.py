"""Captions made of tags: parsing, dropout, shuffling."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from refimpl.data.captions import drop_tags, parse_caption, shuffle_tags
from tests.tolerances import CHANCE


@pytest.mark.parametrize(
    ("text", "caption", "tags"),
    [
        ("", "", {}),
        (" ,\n,, ", "", {}),
        ("a red circle", "a red circle", {"general": ("a red circle",)}),
        ("red , blue\n", "red, blue", {"general": ("red", "blue")}),
        ("red\r\nblue\rgreen", "red, blue, green", {"general": ("red", "blue", "green")}),
        (
            "character:alice, 1girl, artist: bob  b",
            "alice, 1girl, bob b",
            {"character": ("alice",), "general": ("1girl",), "artist": ("bob b",)},
        ),
        ("general:x", "x", {"general": ("x",)}),
        ("re:zero, :d, 1:2:3", "re:zero, :d, 1:2:3", {"general": ("re:zero", ":d", "1:2:3")}),
        ("character:re:zero", "re:zero", {"character": ("re:zero",)}),
        ("character:, character", "character:, character", {"general": ("character:", "character")}),
        ("Character:alice", "Character:alice", {"general": ("Character:alice",)}),
        ("red, red", "red, red", {"general": ("red", "red")}),
        (
            "<script>alert(1)</script>",
            "<script>alert(1)</script>",
            {"general": ("<script>alert(1)</script>",)},
        ),
        ("a\u00a0b\tc", "a b c", {"general": ("a b c",)}),
    ],
)
def test_parse_caption(text: str, caption: str, tags: dict) -> None:
    assert parse_caption(text) == (caption, tags)


def test_classes_are_the_callers() -> None:
    assert parse_caption("colour:red, artist:bob", ["colour"]) == (
        "red, artist:bob",
        {"colour": ("red",), "general": ("artist:bob",)},
    )


@given(st.text())
def test_any_text_parses_to_tags_that_parse_to_themselves(text: str) -> None:
    caption, tags = parse_caption(text, [])
    assert parse_caption(caption, []) == (caption, tags)
    assert sum(len(names) for names in tags.values()) == (len(caption.split(", ")) if caption else 0)


@given(
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=8), st.integers(0, 9), st.integers(0, 2**32 - 1)
)
def test_shuffling_keeps_the_tags_and_the_first(tags: list[str], keep: int, seed: int) -> None:
    shuffled = shuffle_tags(", ".join(tags), np.random.default_rng(seed), keep).split(", ")
    if tags:
        assert sorted(shuffled) == sorted(tags)
        assert shuffled[:keep] == tags[:keep]


def test_every_order_is_as_likely() -> None:
    generator = np.random.default_rng(0)
    orders = Counter(shuffle_tags("x, a, b, c", generator, keep_first=1) for _ in range(1200))
    assert len(orders) == 6
    assert chisquare(list(orders.values())).pvalue > CHANCE


TAGS = {"artist": ("ann", "bob"), "general": ("red", "bob"), "character": ("eve",)}


class Always:
    """Draws that are always the lowest or always the highest."""

    def __init__(self, highest: bool) -> None:
        self.highest, self.drawn = highest, 0

    def integers(self, low: int, high: int) -> int:
        self.drawn += 1
        return high - 1 if self.highest else low


@pytest.mark.parametrize(
    ("rates", "keep_first", "left", "draws"),
    [
        ({}, 0, "ann, red, bob, eve, plain", 0),
        ({"artist": 1.0}, 0, "red, eve, plain", 2),
        ({"artist": 1.0}, 1, "ann, red, eve, plain", 1),
        ({"artist": 0.0, "general": 0.5}, 0, "ann, bob, eve, plain", 3),
        ({"artist": 1.0, "general": 1.0, "character": 1.0}, 0, "plain", 4),
        ({"meta": 1.0}, 0, "ann, red, bob, eve, plain", 0),
    ],
)
def test_tags_are_dropped_by_class(rates: dict, keep_first: int, left: str, draws: int) -> None:
    rng = Always(highest=False)
    assert drop_tags("ann, red, bob, eve, plain", TAGS, rates, rng, keep_first) == left
    assert rng.drawn == draws


def test_a_probability_of_one_drops_and_of_zero_keeps_whatever_is_drawn() -> None:
    assert drop_tags("ann, red", TAGS, {"artist": 1.0, "general": 0.0}, Always(highest=True)) == "red"
    assert drop_tags("", {}, {"general": 1.0}, Always(highest=False)) == ""


def test_tags_are_dropped_as_often_as_asked_for() -> None:
    generator = np.random.default_rng(0)
    dropped = sum(drop_tags("ann, red", TAGS, {"artist": 0.3}, generator) == "red" for _ in range(2000))
    assert chisquare([dropped, 2000 - dropped], [600, 1400]).pvalue > CHANCE
