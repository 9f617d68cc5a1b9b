"""The memory plan decides on batch, precision and activation checkpointing, changing as little as it can."""

import functools
from dataclasses import replace

import pytest

from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.presets import load_config
from refimpl.train.budget.cards import GIB, Card
from refimpl.train.budget.counted import count
from refimpl.train.budget.plan import largest_work, plan_step
from refimpl.train.first.fitted import fitted

BATCH = 4096  # so many that the tiny network's activations outweigh all else


def settings(**changes: object) -> Config:
    config = load_config("tiny")
    unet = replace(config.unet, channel_mult=(1, 2), transformer_depth=(0, 1))  # counted sooner
    return replace(config, unet=unet, train=replace(config.train, batch_size=BATCH, **changes))


counted = functools.lru_cache(count)  # once for all tests


@pytest.fixture(autouse=True)
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.train.first.fitted.count", counted)


def needed(config: Config) -> int:
    work = largest_work(config)
    return plan_step(counted(config, work.bucket), work).needed


def chosen(config: Config) -> tuple[str, str, int, int]:
    train = config.train
    return train.precision, train.activation_checkpointing, train.batch_size, train.accumulate


def test_with_room_nothing_changes() -> None:
    config, reasons, plan = fitted(settings(), Card("big", needed(settings())))
    assert chosen(config) == ("tf32", "none", BATCH, 1)
    assert plan.needed == needed(settings())
    assert "memory plan for big" in reasons["train.batch_size"]


def test_less_is_kept_before_the_precision_changes() -> None:
    cheap, full = (settings(activation_checkpointing=level) for level in ("cheap", "full"))
    assert chosen(fitted(settings(), Card("middle", needed(cheap)))[0]) == ("tf32", "cheap", BATCH, 1)
    assert chosen(fitted(settings(), Card("small", needed(full)))[0]) == ("tf32", "full", BATCH, 1)


def test_a_smaller_batch_keeps_the_images_of_a_step() -> None:
    half = replace(
        settings(activation_checkpointing="full"), train=replace(settings().train, batch_size=BATCH // 8)
    )
    config, reasons, plan = fitted(settings(), Card("tight", needed(half)))
    _, _, batch, accumulate = chosen(config)
    assert batch < BATCH
    assert batch * accumulate == BATCH
    assert plan.needed <= needed(half)
    assert "micro-batches" in reasons["train.accumulate"]


def test_what_was_given_stays() -> None:
    fixed = {"train.precision", "train.activation_checkpointing"}
    small = Card("small", needed(settings(activation_checkpointing="full")))
    config, _, _ = fitted(settings(), small, fixed)
    assert chosen(config)[:2] == ("tf32", "none")
    with pytest.raises(InputError, match=f"this does not fit small: with {BATCH} images at a time"):
        fitted(settings(), small, {*fixed, "train.batch_size"})


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"init_from": "a"}, "train a LoRA (--train lora), begin with the preset finetune_24gb, or take a larger"),
        ({}, "take a larger card, or the CPU with --gpu cpu"),
    ],
)  # fmt: skip
def test_nothing_fits_a_card_that_is_too_small(given: dict[str, str], remedy: str) -> None:
    """From nothing, a small network is trained, which there is no adapter for, and which a CPU trains too."""
    with pytest.raises(InputError) as error:
        fitted(settings(**given), Card("a stamp", 2**20))
    message = str(error.value)
    assert message.startswith("this does not fit a stamp: with one image at a time")
    assert f"; {remedy}" in message


def test_the_refusal_counts_one_image() -> None:
    """What it says to be needed is the least that a card could have."""
    with pytest.raises(InputError) as error:
        fitted(settings(), Card("a stamp", 2**20))
    one = settings(precision="bf16", activation_checkpointing="full", accumulate=BATCH)
    least = needed(replace(one, train=replace(one.train, batch_size=1)))
    assert f"it needs {least / GIB:.1f} of 0.0 GiB" in str(error.value)
    assert f"{needed(settings()) / GIB:.1f}" != f"{least / GIB:.1f}"
