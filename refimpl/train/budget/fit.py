"""Whether a run fits its card, and the largest batch that does (not from a paper)."""

from dataclasses import replace

from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.train.budget.cards import GIB, Card
from refimpl.train.budget.counted import Counted, count
from refimpl.train.budget.plan import Plan, Work, largest_work, plan_step
from refimpl.train.sharding.mesh import check_sharding

MOST = 2**20  # images in a micro-batch, beyond any card


def fits(plan: Plan, card: Card) -> bool:
    """Whether the card has the memory."""
    return plan.needed <= card.memory


def largest_batch(counted: Counted, work: Work, card: Card) -> int:
    """The most images per micro-batch that fit, everything else unchanged; 0 where not even one does."""
    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        if fits(plan_step(counted, replace(work, batch=middle)), card):
            low = middle
        else:
            high = middle - 1
    return low


def smaller_batch(counted: Counted, work: Work, card: Card) -> Work | None:
    """The largest micro-batch below `work`'s that fits, with as many images in a step; None where none does.

    Where the backward pass steps the parameters, a step has fewer images.
    """
    images = work.batch * work.accumulate
    if work.in_backward:
        batch = largest_batch(counted, work, card)  # of a step too, which is one micro-batch
        return replace(work, batch=batch) if 0 < batch < work.batch else None
    for batch in range(work.batch - 1, 0, -1):
        if images % batch == 0:
            smaller = replace(work, batch=batch, accumulate=images // batch)
            if fits(plan_step(counted, smaller), card):
                return smaller
    return None


def batch_settings(work: Work) -> str:
    """The settings that give a micro-batch."""
    width, height = work.bucket
    value = work.batch * width * height if work.setting == "train.pixel_budget" else work.batch
    return f"{work.setting} {value}, train.accumulate {work.accumulate}"


def checked_plan(config: Config, ranks: int, card: Card) -> tuple[Counted, Work, Plan]:
    """The memory plan of a run on a card.

    Raises InputError when it does not fit, naming the largest batch that does.
    """
    check_sharding(config.train, ranks)
    work = largest_work(config, ranks)
    counted = count(config, work.bucket)
    plan = plan_step(counted, work)
    if fits(plan, card):
        return counted, work, plan
    smaller = smaller_batch(counted, work, card)
    remedy = (
        "and not even one image fits with these settings"
        if smaller is None
        else f"and the largest batch that fits is {smaller.batch}: {batch_settings(smaller)}"
        + ("" if work.in_backward else " keep the global batch")
    )
    width, height = work.bucket
    raise InputError(
        f"{work.setting}: {work.batch} images of {width}×{height} need {plan.needed / GIB:.1f} GiB, but "
        f"{card.name} has {card.memory / GIB:.1f} GiB, {remedy}; `refimpl estimate` with the same arguments lists "
        "what else would help"
    )
