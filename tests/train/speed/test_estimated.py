"""The speed by the roofline, and the time to the end, stage by stage."""

from dataclasses import replace

import pytest

from refimpl.data.config import BucketConfig
from refimpl.run.config import Config, Stage
from refimpl.run.presets import load_config
from refimpl.train.budget.cards import CARDS, Card
from refimpl.train.budget.flops import bucket_flops
from refimpl.train.budget.plan import Work
from refimpl.train.speed.estimated import (
    Speed,
    roofline_speed,
    seconds_to_the_end,
    speed_lines,
    spent,
    stage_lengths,
    step_images,
)

SQUARE = (1024, 1024)


def settings(**changes: object) -> Config:
    config = load_config("novelai_v3")
    return replace(config, train=replace(config.train, **changes))


def test_the_roofline_is_the_peak_times_the_share_that_was_reached() -> None:
    config = settings()
    speed = roofline_speed(config, Work(SQUARE, 8), CARDS["h200"])
    assert speed is not None
    assert speed.images_per_second == pytest.approx(97e12 / bucket_flops(config, SQUARE))  # measured on one
    many = roofline_speed(config, Work(SQUARE, 8, ranks=4), CARDS["h200"])
    assert many is not None
    assert many.images_per_second == pytest.approx(4 * speed.images_per_second)
    assert "times 4 ranks without what they lose" in many.how


def test_where_nothing_is_known_nothing_is_said() -> None:
    assert roofline_speed(settings(), Work(SQUARE, 8), Card("a GPU of 24GB", 24 * 10**9)) is None
    assert roofline_speed(settings(precision="fp32"), Work(SQUARE, 8), CARDS["h100"]) is None
    assert roofline_speed(load_config("tiny"), Work((64, 64), 8), CARDS["h100"]) is None
    said = speed_lines(settings(), None, Card("a GPU of 24GB", 1), 1)
    assert said.startswith("speed: not known for this network on a GPU of 24GB in tf32; --measure")


def test_one_stage() -> None:
    config = settings(steps=100, batch_size=4, accumulate=2)
    largest = max(config.buckets.sizes(), key=lambda size: size[0] * size[1])
    assert seconds_to_the_end(config, Speed(2.0, largest, ""), 1) == 100 * 8 / 2
    assert seconds_to_the_end(config, Speed(4.0, largest, ""), 2) == 100 * 16 / 4


def test_stages_take_the_time_of_their_sizes() -> None:
    small = BucketConfig(max_area=512 * 512, max_side=512, min_side=512)
    stages = (Stage(0, buckets=small, batch_size=16), Stage(60), Stage(200))
    config = replace(settings(steps=100, batch_size=4), stages=stages)
    assert stage_lengths(config) == [60, 40, 0]
    assert [step_images(config, number, SQUARE, 1) for number in range(3)] == [16, 4, 4]
    share = bucket_flops(config, (512, 512)) / bucket_flops(config, SQUARE)
    seconds = seconds_to_the_end(config, Speed(2.0, SQUARE, ""), 1)
    assert seconds == pytest.approx((60 * 16 * share + 40 * 4) / 2)


def test_a_pixel_budget_gives_the_batch() -> None:
    config = settings(pixel_budget=4 * 1024 * 1024)
    assert step_images(config, 0, SQUARE, 1) == 4
    assert step_images(config, 0, (512, 512), 1) == 16


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (5, "5 seconds"),
        (89, "89 seconds"),
        (120, "2 minutes"),
        (5400, "1.5 hours"),
        (3600 * 240, "240 hours (10.0 days)"),
    ],
)
def test_times_are_told_in_a_readable_unit(seconds: float, said: str) -> None:
    assert spent(seconds) == said


def test_the_autoencoder_comes_before() -> None:
    tiny = load_config("tiny")
    said = speed_lines(tiny, Speed(70.0, (64, 64), "measured"), CARDS["h100"], 1)
    assert said.splitlines()[0] == "speed: 70 images/s, measured"
    assert said.splitlines()[1].startswith("to the end: 9.14 minutes for 2,400 steps of 16 images; ")
    assert (
        said.splitlines()[2] == "before it: 1,500 steps of the autoencoder, unless demo-data/latents has one"
    )
