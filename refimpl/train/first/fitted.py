"""Batch, precision and activation checkpointing that the memory plan has room for."""

from collections.abc import Collection
from dataclasses import replace

from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.train.budget.cards import GIB, Card
from refimpl.train.budget.counted import count
from refimpl.train.budget.fit import fits, smaller_batch
from refimpl.train.budget.levers import LEVELS
from refimpl.train.budget.plan import Plan, Work, largest_work, plan_step
from refimpl.train.first.choose import Reasons

PRECISIONS = ("tf32", "bf16")  # the paper's (N §4), and the one that needs less memory


def fitted(config: Config, card: Card, fixed: Collection[str] = ()) -> tuple[Config, Reasons, Plan]:
    """The settings that fit a card and change the least: first no micro-batch smaller than asked for, then smaller.

    fixed  settings that are to stay as they are, by section and name
    Raises InputError when nothing fits, saying what takes the most.
    """
    least: list[tuple[int, Plan]] = []  # the fewest images that a micro-batch may have, and what they need
    smaller: list[tuple[Config, Work, Plan]] = []
    for changed in _candidates(config, fixed):
        work = largest_work(changed)
        counted = count(changed, work.bucket)
        plan = plan_step(counted, work)
        if fits(plan, card):
            return changed, _reasons(changed, plan, card), plan
        is_fixed = "train.batch_size" in fixed
        fewest = work if is_fixed else _one_by_one(work)
        least.append((fewest.batch, plan_step(counted, fewest)))
        less = None if is_fixed else smaller_batch(counted, work, card)
        if less is not None:
            smaller.append((changed, less, plan_step(counted, less)))
    if not smaller:
        raise _refusal(*min(least, key=lambda entry: entry[1].needed), config, card)
    changed, work, plan = max(
        smaller, key=lambda entry: entry[1].batch
    )  # the first of equals: changed the least
    train = replace(changed.train, batch_size=work.batch, accumulate=work.accumulate)
    changed = replace(changed, train=train)
    return changed, _reasons(changed, plan, card), plan


def _candidates(config: Config, fixed: Collection[str]) -> list[Config]:
    """Ways to compute, those first that change the least."""
    precisions = (config.train.precision,) if "train.precision" in fixed else PRECISIONS
    levels = [level for level, _ in LEVELS]
    if "train.activation_checkpointing" in fixed:
        levels = [config.train.activation_checkpointing]
    return [
        replace(config, train=replace(config.train, precision=precision, activation_checkpointing=level))
        for precision in precisions
        for level in levels
    ]


def _reasons(config: Config, plan: Plan, card: Card) -> Reasons:
    needed = f"{plan.needed / GIB:.1f} of {card.memory / GIB:.1f} GiB"
    train = config.train
    return {
        "train.batch_size": f"by the memory plan for {card.name}: {needed}",
        "train.accumulate": "so many micro-batches make the images of a step" if train.accumulate > 1 else "",
        "train.precision": {
            "tf32": "as N §4 trains",
            "bf16": "needs less memory than tf32, in which N §4 trains",
        }.get(train.precision, ""),
        "train.activation_checkpointing": {
            "none": "there is room for all activations",
            "cheap": "norms and gates are computed again, which needs less memory",
            "full": "whole blocks are computed again: a third more arithmetic, far less memory",
        }[train.activation_checkpointing],
    }


def _one_by_one(work: Work) -> Work:
    """The same images in micro-batches of one; a step has but one where the backward pass steps the parameters."""
    return replace(work, batch=1, accumulate=1 if work.in_backward else work.batch * work.accumulate)


def _refusal(images: int, plan: Plan, config: Config, card: Card) -> InputError:
    largest = max(plan.held, key=lambda name: plan.held[name])
    if config.lora.rank or not config.train.init_from:  # adapters, or a network as small as there is
        remedy = (
            "take a larger card, or the CPU with --gpu cpu" if config.text.is_tiny else "take a larger card"
        )
    else:
        remedy = "train a LoRA (--train lora), begin with the preset finetune_24gb, or take a larger card"
    at_a_time = "one image" if images == 1 else f"{images} images"
    return InputError(
        f"this does not fit {card.name}: with {at_a_time} at a time, bf16 and every block computed again it needs "
        f"{plan.needed / GIB:.1f} of {card.memory / GIB:.1f} GiB, of which {plan.held[largest] / GIB:.1f} for the "
        f"{largest}; {remedy}"
    )
