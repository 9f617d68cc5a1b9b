"""Settings that make a run fit a smaller card, and what each costs."""

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from refimpl.errors import InputError
from refimpl.model.config import Recompute
from refimpl.run.config import Config, TrainConfig
from refimpl.train.budget.cards import GIB, Card
from refimpl.train.budget.counted import Counted, count
from refimpl.train.budget.fit import batch_settings, fits, smaller_batch
from refimpl.train.budget.flops import bucket_flops, forward_flops
from refimpl.train.budget.live_memory import Timeline
from refimpl.train.budget.plan import Plan, Work, largest_work, plan_step

# Levels of train.activation_checkpointing from the least to the most computed again: value, and whether matrix
# products are.
LEVELS: tuple[tuple[Recompute, bool], ...] = (("none", False), ("cheap", False), ("full", True))
# Ways of dividing among ranks what every rank would hold, from the least to the most sent, and what that costs.
DIVISIONS = (
    ("", ""),
    ("train.zero1 True", "the new weights are sent to all ranks once a step: half an all-reduce more"),
    (
        "train.sharding shard",
        "a micro-batch gathers the weights for each of its two passes: an all-reduce more; gradients of several "
        "micro-batches add up undivided",
    ),
)


# What of the papers' AdamW on float32 weights may be given up where nothing else makes a run fit, from the least to
# the most: fields of [optimizer] and of [train], and what that costs (docs/memory.md).
DEVIATIONS: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
    ({"kind": "adamw8bit"}, {}, "AdamW's moments in 8 bits"),
    (
        {"kind": "adafactor"},
        {},
        "no first moment, of the second the means of rows and columns, and rates of its own",
    ),
    (
        {"kind": "adafactor", "clip_norm": 0.0},
        {
            "weight_dtype": "bf16",
            "precision": "bf16",
            "step_in_backward": True,
            "max_bad_steps": 1,
            "accumulate": 1,
        },
        "the same, and weights of 8 significant bits, rounded at random; no clipping; a bad step ends the run",
    ),
)


@dataclass(frozen=True)
class Lever:
    """A change of settings."""

    settings: str
    """The settings to change."""
    cost: str
    """What is lost."""
    plan: Plan
    """The memory plan with them."""


def levers(config: Config, counted: Counted, work: Work, card: Card) -> list[Lever]:
    """Changes that save memory, those first that change the least.

    Of precision, activation checkpointing and, with several ranks that all hold everything, of the sharding; on one
    rank where none of these fits, of the optimizer and the weights too. Each is tried with the batch as it is, and,
    where that does not fit, with the largest micro-batch that does and more of them in a step.
    """
    now = config.train
    level = [value for value, _ in LEVELS].index(now.activation_checkpointing)
    is_plain = counted.optimizer == "adamw" and now.weight_dtype == "fp32"
    undivided = is_plain and work.ranks > 1 and work.divided == 1 and not work.zero1
    found = []
    for precision, (value, again), (division, sent) in itertools.product(
        dict.fromkeys((now.precision, "bf16")), LEVELS[level:], DIVISIONS if undivided else DIVISIONS[:1]
    ):
        train = replace(now, precision=precision, activation_checkpointing=value)
        settings, costs = _arithmetic(config, train, work, again)
        if precision == "bf16" and "shard" in division:
            train = replace(train, sharding="shard")  # under which the weights' casts are not kept
        changed = counted if train == now else _counted(replace(config, train=train), work.bucket)
        tried = work
        if division:
            settings.append(division)
            costs.append(sent)
            tried = replace(work, **({"divided": work.ranks} if "shard" in division else {"zero1": True}))
        if lever := _fitted(config, changed, tried, card, settings, costs):
            found.append(lever)
    found = _that_save(found, plan_step(counted, work), card)
    plans = [plan_step(counted, work), *(lever.plan for lever in found)]
    if is_plain and work.ranks == 1 and not any(fits(plan, card) for plan in plans):
        found += _that_save(_deviations(config, work, card), min(plans, key=lambda plan: plan.needed), card)
    return found


def _that_save(found: list[Lever], now: Plan, card: Card) -> list[Lever]:
    """Those that fit, and of the others those that need less than the run as it is and all smaller changes."""
    least, kept = now.needed, []
    for lever in found:
        if fits(lever.plan, card) or lever.plan.needed < least:
            kept.append(lever)
        least = min(least, lever.plan.needed)
    return kept


def _arithmetic(config: Config, train: TrainConfig, work: Work, again: bool) -> tuple[list[str], list[str]]:
    """How a run with other precision and checkpointing differs: its settings, and what they cost."""
    now, settings, costs = config.train, [], []
    if train.activation_checkpointing != now.activation_checkpointing:
        settings.append(f"train.activation_checkpointing {train.activation_checkpointing}")
        costs.append(_recomputation(config, work, again))
    if train.precision != now.precision:
        settings.append(f"train.precision {train.precision}")
        costs.append("products of 8-bit significands, where N §4 trains in float32 with TF32")
    return settings, costs


def _fitted(
    config: Config, counted: Counted, work: Work, card: Card, settings: list[str], costs: list[str]
) -> Lever | None:
    """The lever, which also caches what is encoded and makes its micro-batches smaller where that is needed."""
    settings, costs, batch = list(settings), list(costs), work
    plan = plan_step(counted, work)
    if not fits(plan, card) and plan.largest == "encoding" and not config.data.cache:
        settings.append("data.cache (written by refimpl cache)")
        costs.append("the disk space of the latents")
        counted = replace(counted, encoding=Timeline())
        plan = plan_step(counted, work)
    if not fits(plan, card):
        batch = smaller_batch(counted, work, card) or work
    if batch != work:
        plan = plan_step(counted, batch)
        settings.append(batch_settings(batch))
        held = f"{counted.trained / GIB:.1f} GiB of gradients held between them"
        costs.append(
            f"{batch.batch} images a step, not {work.batch}"
            if work.in_backward
            else f"{batch.accumulate} smaller micro-batches a step, {held}"
        )
    return Lever("; ".join(settings), "; ".join(costs), plan) if settings else None


def _deviations(config: Config, work: Work, card: Card) -> list[Lever]:
    """Other optimizers, and weights of bfloat16, with every block computed again.

    Those that other settings rule out are left out.
    """
    level, again = LEVELS[-1]
    found = []
    for optimizer, train, cost in DEVIATIONS:
        try:
            changed = replace(
                config,
                optimizer=replace(config.optimizer, **optimizer),
                train=replace(config.train, activation_checkpointing=level, **train),
            )
        except InputError:
            continue
        settings, costs = _arithmetic(config, changed.train, work, again)
        settings += [f"optimizer.{name} {value}" for name, value in optimizer.items()]
        settings += [
            f"train.{name} {value}"
            for name, value in train.items()
            if name != "precision" and value != getattr(config.train, name)
        ]
        tried = largest_work(changed, work.ranks)
        if lever := _fitted(changed, _counted(changed, tried.bucket), tried, card, settings, [*costs, cost]):
            found.append(lever)
    return found


@lru_cache(maxsize=1)
def _counted(config: Config, bucket: tuple[int, int]) -> Counted:
    """Counted once for all divisions."""
    return count(config, bucket)


def _recomputation(config: Config, work: Work, products: bool) -> str:
    if not products:
        return "norms, activations and gates are computed twice"
    width, height = (side // config.vae.factor for side in work.bucket)
    share = forward_flops(config.unet, height, width) / bucket_flops(config, work.bucket)
    return f"{share:.0%} more arithmetic: the forward pass is computed twice"
