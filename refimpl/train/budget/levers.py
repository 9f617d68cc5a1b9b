"""Settings that make a run fit a smaller card, and what each costs."""

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

from refimpl.model.config import Recompute
from refimpl.run.config import Config
from refimpl.train.budget.cards import GIB, Card
from refimpl.train.budget.counted import Counted, count
from refimpl.train.budget.fit import batch_settings, fits, smaller_batch
from refimpl.train.budget.flops import bucket_flops, forward_flops
from refimpl.train.budget.live_memory import Timeline
from refimpl.train.budget.plan import Plan, Work, plan_step

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

    Of precision, activation checkpointing and, with several ranks that all hold everything, of the sharding. Each is
    tried with the batch as it is, and, where that does not fit, with the largest micro-batch that does and more of
    them in a step.
    """
    now = config.train
    level = [value for value, _ in LEVELS].index(now.activation_checkpointing)
    undivided = work.ranks > 1 and work.divided == 1 and not work.zero1 and counted.optimizer == "adamw"
    undivided &= now.weight_dtype == "fp32"
    found = []
    for precision, (value, again), (division, sent) in itertools.product(
        dict.fromkeys((now.precision, "bf16")), LEVELS[level:], DIVISIONS if undivided else DIVISIONS[:1]
    ):
        settings, costs = [], []
        if value != now.activation_checkpointing:
            settings.append(f"train.activation_checkpointing {value}")
            costs.append(_recomputation(config, work, again))
        if precision != now.precision:
            settings.append(f"train.precision {precision}")
            costs.append("products of 8-bit significands, where N §4 trains in float32 with TF32")
        train = replace(now, precision=precision, activation_checkpointing=value)
        changed = _counted(replace(config, train=train), work.bucket) if settings else counted
        tried = work
        if division:
            settings.append(division)
            costs.append(sent)
            tried = replace(work, **({"divided": work.ranks} if "shard" in division else {"zero1": True}))
        plan, batch = plan_step(changed, tried), tried
        if not fits(plan, card) and plan.largest == "encoding" and not config.data.cache:
            settings.append("data.cache (written by refimpl cache)")
            costs.append("the disk space of the latents")
            changed = replace(changed, encoding=Timeline())
            plan = plan_step(changed, tried)
        if not fits(plan, card):
            batch = smaller_batch(changed, tried, card) or tried
        if batch != tried:
            plan = plan_step(changed, batch)
            settings.append(batch_settings(batch))
            held = f"{changed.trained / GIB:.1f} GiB of gradients held between them"
            costs.append(
                f"{batch.batch} images a step, not {work.batch}"
                if work.in_backward
                else f"{batch.accumulate} smaller micro-batches a step, {held}"
            )
        if settings:
            found.append(Lever("; ".join(settings), "; ".join(costs), plan))
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
