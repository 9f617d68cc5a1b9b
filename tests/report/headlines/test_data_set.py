"""Headlines of a data set: what stands in the way of training comes first, with its list and what to do."""

from refimpl.report.headlines.data_set import data_headlines
from refimpl.report.page import Headline
from tests.data.survey.test_survey import survey, table_of

BUCKETS = [(64, 64), (32, 128)]


def told(sizes: list[tuple[int, int]], no_plan: str = "", **more: object) -> dict[str, Headline]:
    found = survey(table_of(sizes, **more), BUCKETS, listed=2)  # type: ignore[arg-type]
    return {each.text: each for each in data_headlines(found, 2, no_plan=no_plan)}


def test_enlarged_images_are_a_headline_with_a_list() -> None:
    found = told([(32, 32)] * 3 + [(64, 64)])
    headline = found["3 of 4 images are enlarged: they are smaller than their bucket."]
    assert headline.severity == "warning"
    assert len(headline.listed) == 3
    assert "(32 × 32 px)" in headline.listed[0]
    assert headline.listed[-1] == "and 1 more"


def test_few_enlarged_images_are_a_note() -> None:
    found = told([(32, 32)] + [(64, 64)] * 10)
    assert found["1 of 11 images are enlarged: they are smaller than their bucket."].severity == "note"


def test_an_empty_data_set_and_no_plan_are_problems() -> None:
    found = told([], no_plan="too few")
    assert found["There is no usable image."].severity == "bad"
    assert found["No first epoch can be planned: too few"].severity == "bad"
    assert "good" not in {each.severity for each in found.values()}


def test_pruned_images_are_not_among_the_enlarged() -> None:
    found = survey(table_of([(10, 400), (32, 32)]), BUCKETS, max_log_error=1.5, listed=5)
    headlines = {each.text: each for each in data_headlines(found, 5)}
    assert headlines["1 of 2 images are left out: no bucket is near their aspect."].severity == "warning"
    (small,) = headlines["1 of 2 images are enlarged: they are smaller than their bucket."].listed
    assert small.endswith("1.png (32 × 32 px)")


def test_images_in_the_outermost_buckets_are_a_note_with_a_list() -> None:
    table = table_of([(64, 64), (32, 200), (128, 32)])
    found = survey(table, [(64, 64), (32, 128), (128, 32)], listed=5)
    headlines = {each.text: each for each in data_headlines(found, 5)}
    headline = headlines["2 of 3 images are in the narrowest or the widest bucket."]
    assert headline.severity == "note"
    assert [name.partition(" (")[2] for name in headline.listed] == ["32 × 200 px)", "128 × 32 px)"]


def test_of_two_buckets_each_is_outermost_and_that_is_no_news() -> None:
    assert not [text for text in told([(64, 64), (32, 128)]) if "narrowest" in text]
