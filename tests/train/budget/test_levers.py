"""What would make a run fit: each change saves memory, says what it costs, and keeps the images of a step."""

import itertools
from dataclasses import replace

import pytest

from refimpl.train.budget.cards import Card
from refimpl.train.budget.fit import fits
from refimpl.train.budget.levers import LEVELS, Lever, levers
from refimpl.train.budget.plan import largest_work, plan_step
from refimpl.train.budget.table import lever_table
from tests.train.budget.networks import counted, small

CONFIG = small(batch_size=4096)
WORK = largest_work(CONFIG)
PLAN = plan_step(counted(CONFIG), WORK)


def found(memory: int, config=CONFIG) -> list[Lever]:
    return levers(config, counted(config), largest_work(config), Card("a card", memory))


@pytest.fixture(scope="module")
def tight() -> list[Lever]:
    """On a card with two thirds of the memory."""
    return found(PLAN.needed * 2 // 3)


def test_each_saves_memory(tight: list[Lever]) -> None:
    assert tight
    assert all(lever.plan.needed < PLAN.needed for lever in tight)


def test_each_names_settings_and_a_cost(tight: list[Lever]) -> None:
    assert all(lever.settings and lever.cost for lever in tight)
    assert len({lever.settings for lever in tight}) == len(tight)


def test_the_first_changes_the_batch_alone(tight: list[Lever]) -> None:
    assert tight[0].settings == "train.batch_size 2048, train.accumulate 2"
    assert tight[0].cost.startswith("2 smaller micro-batches a step, 0.0 GiB of gradients held between them")


def test_all_levels_and_bf16_are_tried(tight: list[Lever]) -> None:
    named = [lever.settings for lever in tight]
    for how in ("cheap", "full"):
        assert sum(f"train.activation_checkpointing {how}" in settings for settings in named) == 2
    assert sum("train.precision bf16" in settings for settings in named) == 3
    assert not any("optimizer." in settings for settings in named)
    cheap, full = (
        next(lever for lever in tight if f"train.activation_checkpointing {how}" in lever.settings)
        for how in ("cheap", "full")
    )
    assert "norms, activations and gates are computed twice" in cheap.cost
    assert "36% more arithmetic: the forward pass is computed twice" in full.cost
    assert any("N §4 trains in float32 with TF32" in lever.cost for lever in tight)


def test_what_is_in_use_is_no_lever() -> None:
    config = small(batch_size=4096, precision="bf16", activation_checkpointing="full")
    assert LEVELS[-1][0] == config.train.activation_checkpointing
    only = found(counted(config).trained, config)
    assert [lever.settings for lever in only if "precision" in lever.settings] == []
    assert [lever.settings for lever in only if "checkpointing" in lever.settings] == []


def test_several_ranks_may_divide_what_each_holds() -> None:
    heavy = small(precision="bf16", activation_checkpointing="full")  # no other lever is left
    work = largest_work(heavy, 8)
    card = Card("a card", plan_step(counted(heavy), work).needed - 1)
    named = {lever.settings: lever for lever in levers(heavy, counted(heavy), work, card)}
    for division, cost in (
        ("train.zero1 True", "half an all-reduce more"),
        ("train.sharding shard", "gathers"),
    ):
        assert cost in named[division].cost
        assert fits(named[division].plan, card)
    divided = replace(heavy, train=replace(heavy.train, sharding="shard"))
    for config, ranks in ((heavy, 1), (divided, 8)):
        found = levers(config, counted(config), largest_work(config, ranks), Card("a card", 1))
        assert not any("zero1" in lever.settings or "sharding" in lever.settings for lever in found)


def test_a_cache_helps_where_encoding_takes_the_most() -> None:
    config = small(batch_size=4096, activation_checkpointing="full")
    heavy = replace(config, vae=replace(config.vae, channels=64))
    plan = plan_step(counted(heavy), WORK)
    assert plan.largest == "encoding"
    named = found(plan.needed - 1, heavy)
    assert any("data.cache (written by refimpl cache)" in lever.settings for lever in named)
    cached = replace(heavy, data=replace(heavy.data, cache="cache"))
    assert not any("data.cache" in lever.settings for lever in found(plan.needed - 1, cached))


def test_where_nothing_else_fits_the_optimizer_and_the_weights_may_change() -> None:
    """With bf16, every block computed again, one image and a cache, nothing else is left to change."""
    config = small(batch_size=1, precision="bf16", activation_checkpointing="full")
    config = replace(config, data=replace(config.data, cache="cache"))
    needed = plan_step(counted(config), largest_work(config)).needed
    assert found(needed, config) == []
    named = {lever.settings: lever for lever in found(needed - 1, config)}
    low = (
        "optimizer.kind adafactor; optimizer.clip_norm 0.0; train.weight_dtype bf16; "
        "train.step_in_backward True; train.max_bad_steps 1"
    )
    assert list(named) == ["optimizer.kind adamw8bit", "optimizer.kind adafactor", low]
    assert all(lever.cost and lever.plan.needed < needed for lever in named.values())
    by_hand = replace(
        config,
        optimizer=replace(config.optimizer, kind="adafactor", clip_norm=0.0),
        train=replace(config.train, weight_dtype="bf16", step_in_backward=True, max_bad_steps=1),
    )
    assert named[low].plan == plan_step(counted(by_hand), largest_work(by_hand))


def test_what_the_settings_rule_out_is_no_lever() -> None:
    ordered = small(batch_size=1, activation_checkpointing="full", reduction="ordered")
    optimizers = [x.settings for x in found(1, ordered) if "optimizer" in x.settings]
    assert [settings.split("; ")[-1] for settings in optimizers] == [
        "optimizer.kind adamw8bit",
        "optimizer.kind adafactor",
    ]
    low = small(batch_size=1, precision="bf16", weight_dtype="bf16")
    several = levers(CONFIG, counted(CONFIG), largest_work(CONFIG, 2), Card("a card", 1))
    assert not any("optimizer." in lever.settings for lever in (*found(1, low), *several))


def test_where_nothing_helps_the_table_says_why() -> None:
    nothing = found(1)
    card = Card("a card", 1)
    assert not any(fits(lever.plan, card) for lever in nothing)
    text = lever_table(nothing, counted(CONFIG), card)
    assert "None fits: what is trained needs" in text
    assert "train adapters alone (lora.rank), or use a larger card." in text
    assert "does not fit" in text


def test_a_larger_change_that_saves_no_more_is_not_listed() -> None:
    """On a card that nothing fits, each line needs less than those before it, and than the run as it is."""
    needed = [PLAN.needed, *(lever.plan.needed for lever in found(1))]
    assert len(needed) > 2
    assert all(after < before for before, after in itertools.pairwise(needed))


def test_the_table_of_levers_says_what_fits(tight: list[Lever]) -> None:
    text = lever_table(tight, counted(CONFIG), Card("a card", PLAN.needed * 2 // 3))
    assert text.startswith(
        "what saves memory, and what it costs:\n  train.batch_size 2048, train.accumulate 2\n"
    )
    assert "GiB, fits; " in text
    assert "None fits" not in text
