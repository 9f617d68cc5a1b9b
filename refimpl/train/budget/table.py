"""The memory plan as a human-readable table."""

from refimpl.run.config import Config
from refimpl.train.budget.cards import GIB, Card, peak_flops
from refimpl.train.budget.counted import Counted
from refimpl.train.budget.fit import fits, largest_batch
from refimpl.train.budget.flops import bucket_flops
from refimpl.train.budget.levers import Lever
from refimpl.train.budget.plan import Plan, Work

WIDTH = 44  # columns of a row's name


def table(config: Config, counted: Counted, work: Work, plan: Plan, card: Card) -> str:
    """What is held, what each moment adds, and what is left of the card."""
    train, (width, height) = config.train, work.bucket
    left = card.memory - plan.needed
    lines = [
        f"GPU memory of rank 0 of {work.ranks} on {card.name}: {work.batch} images of {width}×{height} in a "
        "micro-batch,",
        f"{work.accumulate} micro-batch{'es' * (work.accumulate > 1)} in a step, {train.precision}, activation "
        f"checkpointing {train.activation_checkpointing}",
        f"{'':<{WIDTH}}    GiB",
        *(_row(name, size) for name, size in plan.held.items()),
        _row("held throughout", sum(plan.held.values())),
        *(_row(f"  besides: {name}", size, name == plan.largest) for name, size in plan.moments.items()),
        _row("peak of tensors", plan.peak),
        _row("reserve (context, workspaces, fragments)", plan.reserve),
        _row("needed", plan.needed),
        _row("left of the card" if fits(plan, card) else "too much for the card", abs(left)),
        f"largest micro-batch that fits with these settings: {largest_batch(counted, work, card)}",
        _arithmetic(config, work, card),
    ]
    return "\n".join(lines)


def lever_table(levers: list[Lever], counted: Counted, card: Card) -> str:
    """What would make the run fit, and what it costs."""
    lines = ["what saves memory, and what it costs:"]
    for lever in levers:
        verdict = "fits" if fits(lever.plan, card) else "does not fit"
        lines.append(f"  {lever.settings}\n    {lever.plan.needed / GIB:.1f} GiB, {verdict}; {lever.cost}")
    if not any(fits(lever.plan, card) for lever in levers):
        trained, state = counted.trained / GIB, counted.state / GIB
        lines += [
            f"  None fits: what is trained needs {trained:.1f} GiB of gradients, {state:.1f} of moments and",
            "    its place in the moving average; train adapters alone (lora.rank), or use a larger card.",
        ]
    return "\n".join(lines)


def _row(name: str, size: int, is_largest: bool = False) -> str:
    return f"{name:<{WIDTH}}{size / GIB:7.2f}{'   ← the largest' if is_largest else ''}"


def _arithmetic(config: Config, work: Work, card: Card) -> str:
    """Operations for one image, and how many images a second they allow."""
    flops = bucket_flops(config, work.bucket)
    text = f"UNet forward and backward: {flops / 1e12:.2f} TFLOP per image"
    peak = peak_flops(card.name, config.train.precision)
    if peak is None:
        return text
    return f"{text}, so at most {peak / flops:.1f} images/s at the card's {peak / 1e12:g} TFLOP/s"
