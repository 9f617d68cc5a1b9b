"""Tag-based loss weights (N §4.3; the formula is not from a paper)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.data import tags as tags_module
from refimpl.data.config import MAX_BETA
from refimpl.data.index.builder import Gathered, Row
from refimpl.data.index.data_set import index_of
from refimpl.data.tags import TagCounts, count_tags, dataset_weights
from refimpl.errors import InputError
from tests import strategies
from tests.tolerances import FLOAT64_ROUNDING

# "common" in 4 images, "rare" in 1: mean count of the class 2.5.
IMAGES = [{"general": ("common",)}] * 3 + [{"general": ("common", "rare"), "artist": ("bob",)}]


def test_weight_is_the_mean_factor_of_the_tags() -> None:
    counts = count_tags(IMAGES, TagCounts(beta=0.5))
    assert counts.weight({"general": ("common",)}) == math.sqrt(2.5 / 4)
    assert counts.weight({"general": ("rare",)}) == math.sqrt(2.5)
    assert counts.weight({"artist": ("bob",)}) == 1
    expected = (math.sqrt(2.5 / 4) + math.sqrt(2.5) + 1) / 3
    assert counts.weight(IMAGES[3]) == pytest.approx(expected, rel=FLOAT64_ROUNDING)


def test_rare_tags_weigh_more_and_beta_says_how_much() -> None:
    common, rare = (
        [count_tags(IMAGES, TagCounts(beta, 0.01, 100)).weight({"general": (tag,)}) for beta in (0, 0.5, 1)]
        for tag in ("common", "rare")
    )
    assert common[0] == rare[0] == 1
    assert common == sorted(common, reverse=True)
    assert rare == sorted(rare)
    assert common[2] * 4 == rare[2]


def test_weights_are_clamped() -> None:
    counts = count_tags(
        [{"general": ("common",)}] * 1000 + [{"general": ("rare",)}], TagCounts(1.0, 0.75, 2.0)
    )
    assert counts.weight({"general": ("common",)}) == 0.75
    assert counts.weight({"general": ("rare",)}) == 2.0


def test_a_repeated_tag_counts_once() -> None:
    twice, once = TagCounts(), TagCounts()
    twice.update({"general": ("a", "a", "b")})
    once.update({"general": ("a", "b")})
    assert twice.counts == once.counts == {"general": {"a": 1, "b": 1}}
    counts = count_tags(IMAGES, TagCounts())
    assert counts.weight({"general": ("rare", "rare", "common")}) == counts.weight(
        {"general": ("common", "rare")}
    )


def test_a_name_in_two_classes_is_two_tags() -> None:
    counts = count_tags([{"artist": ("x",)}, {"character": ("x",)}, {"character": ("x", "y")}], TagCounts())
    assert counts.weight({"artist": ("x",)}) == 1
    assert counts.weight({"character": ("x",)}) == math.sqrt(1.5 / 2)


def test_one_str_is_not_taken_for_tags_of_a_letter() -> None:
    counts = TagCounts()
    for act in (counts.update, counts.weight):
        with pytest.raises(InputError, match="tags of class 'artist': 'bob' is one str"):
            act({"general": ("common",), "artist": "bob"})
    assert not counts.counts


def test_no_tags_weigh_one() -> None:
    counts = count_tags(IMAGES, TagCounts())
    assert counts.weight({}) == counts.weight({"general": ()}) == TagCounts().weight({}) == 1


def test_unknown_tags_and_classes() -> None:
    counts = count_tags(IMAGES, TagCounts())
    assert counts.weight({"general": ("never seen",)}) == counts.weight({"general": ("rare",)})
    assert counts.weight({"meta": ("never seen",)}) == 1
    assert "never seen" not in counts.counts["general"]


def test_counts_follow_the_data_as_it_is_read() -> None:
    counts = TagCounts()
    weights = []
    for image in [{"general": ("a", "b")}] + [{"general": ("a",)}] * 9:
        counts.update(image)
        weights.append(counts.weight({"general": ("a",)}))
    assert weights[0] == 1
    assert weights == sorted(weights, reverse=True)


@given(st.lists(strategies.tags_by_class(), max_size=8), st.floats(0, 2))
def test_dataset_weights_have_mean_one(images: list, beta: float) -> None:
    counts = count_tags(images, TagCounts(beta, 0.5, 2.0))
    raw = np.array([counts.weight(image) for image in images])
    assert ((raw >= 0.5) & (raw <= 2.0)).all()
    weights = dataset_weights(images, counts)
    assert weights.shape == (len(images),)
    if images:
        assert math.fsum(weights) / len(images) == pytest.approx(1, abs=FLOAT64_ROUNDING)
        assert weights * raw.mean() == pytest.approx(raw, rel=FLOAT64_ROUNDING)


@given(st.lists(strategies.tags_by_class(), min_size=1, max_size=5), st.permutations(range(5)))
def test_order_changes_nothing(images: list, order: list[int]) -> None:
    shuffled = [images[i] for i in order if i < len(images)]
    counts, again = count_tags(images, TagCounts()), count_tags(shuffled, TagCounts())
    assert counts.counts == again.counts
    for image in images:
        turned = {tag_class: tags[::-1] for tag_class, tags in reversed(image.items())}
        assert counts.weight(image) == again.weight(turned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "beta = -0.1"),
        ({"beta": math.nan}, "beta = nan"),
        ({"beta": math.inf}, "beta = inf"),
        ({"w_min": 0}, "w_min = 0"),
        ({"w_min": 1.5}, "w_min = 1.5"),
        ({"w_max": 0.5}, "w_max = 0.5"),
        ({"w_max": math.inf}, "w_max = inf"),
    ],
)
def test_senseless_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TagCounts(**options)


def listed(images: list) -> object:
    """The tags as a column of an index."""
    rows = Gathered("/data")
    for number, tags in enumerate(images):
        rows.add(Row(f"{number:03}", "x.png", 1, 1, 1, "", tags, True, None))
    return index_of(rows.table({})).tags


@given(
    st.lists(strategies.tags_by_class(), max_size=9),
    st.floats(0, MAX_BETA),
    st.sampled_from([(0.25, 4.0), (1.0, 1.0)]),
)
def test_an_index_is_weighed_as_a_list_is(
    monkeypatch: pytest.MonkeyPatch, images: list, beta: float, limits: tuple[float, float]
) -> None:
    monkeypatch.setattr(tags_module, "CHUNK", 4)
    column = listed(images)
    counts, again = count_tags(images, TagCounts(beta, *limits)), count_tags(column, TagCounts(beta, *limits))
    assert counts.counts == again.counts
    expected = dataset_weights(images, counts)
    assert dataset_weights(column, again) == pytest.approx(expected, rel=FLOAT64_ROUNDING)
    rows = np.arange(len(images))[::-2]
    chosen = [images[row] for row in rows]
    assert dataset_weights(column.take(rows), counts) == pytest.approx(
        dataset_weights(chosen, counts), rel=FLOAT64_ROUNDING
    )
    assert count_tags(column.take(rows), TagCounts()).counts == count_tags(chosen, TagCounts()).counts
