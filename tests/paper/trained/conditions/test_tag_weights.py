"""Rare tags weigh more, equal weights are 1, and the two arms learn the same pictures."""

from collections import Counter

import pytest
import torch

from refimpl.paper.trained.conditions import tag_weights
from refimpl.paper.trained.conditions.tag_weights import (
    COUNT,
    ERROR,
    MEASURE,
    RARE,
    SHARES,
    drawn_colours,
    weights_of,
)


def test_shares_are_those_of_every_seed():
    one, other = drawn_colours(COUNT, 0), drawn_colours(COUNT, 1)
    assert one != other
    assert Counter(one) == Counter(other)
    assert {name: count / COUNT for name, count in Counter(one).items()} == pytest.approx(SHARES)


def test_rare_tags_weigh_more_and_the_mean_is_1():
    colours = drawn_colours(COUNT, 0)
    weights = weights_of(colours)
    assert weights.mean().item() == pytest.approx(1)
    of_name = {name: weights[colours.index(name)].item() for name in SHARES}
    assert min(of_name[name] for name in RARE) > max(of_name[name] for name in set(SHARES) - set(RARE))


def test_the_arms_differ_in_the_weights_alone(monkeypatch, tmp_path):
    seen = []

    def taught(colours, weights, seed, folder):
        seen.append((colours, seed))
        return bool(torch.equal(weights, torch.ones(COUNT)))

    monkeypatch.setattr(tag_weights, "taught", taught)
    monkeypatch.setattr(
        tag_weights, "colour_error", lambda is_equal, _, names: is_equal * 0.2 + 0.1 * (names == RARE)
    )
    found = tag_weights.of_seed(3, tmp_path)[MEASURE]
    assert seen[0] == seen[1]
    assert found[ERROR] == pytest.approx(0.2)
