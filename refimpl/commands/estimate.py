"""`refimpl estimate`: whether a run fits a GPU, what would make it fit, how fast it is, and when it ends."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from refimpl.checks import check_at_least
from refimpl.commands.terminal import parsed, parsed_in_part
from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.presets import load_config
from refimpl.run.settings.paths import image_problems, refuse
from refimpl.train.budget.cards import Card, find_card, this_card

if TYPE_CHECKING:
    from refimpl.train.budget.plan import Work
    from refimpl.train.speed.estimated import Speed


@dataclass(frozen=True)
class EstimateCommand:
    """Counts, without a GPU, the memory that training needs on one, and how long it will take there.

    Settings can be overridden as in training: `--train.batch-size 4`. Exits with 1 when the run would not fit, after
    listing what would make it fit.
    """

    config: Annotated[str, tyro.conf.Positional]
    """Preset or TOML file."""
    gpu: str = "auto"
    """Card: h100, h200, a100-40, a100-80, rtx3090, rtx4080, rtx4090, the driver's name of one, an amount of
    memory such as 24GB (as a card is sold) or 22.5GiB (as torch reports it), or auto: this machine's, and an h100
    where there is none."""
    ranks: int = 1
    """Processes of the run, each with a GPU."""
    nodes: int = 0
    """Also estimate, for this many nodes of 8 GPUs, what each sharding holds, sends and takes; 0 for not."""

    measure: bool = False
    """Take 20 steps on this machine, on the configuration's own images and with random weights, instead of
    calculating the speed from the card's datasheet. No checkpoint is read or written."""

    def __post_init__(self) -> None:
        if self.measure and (self.gpu != "auto" or self.ranks > 1):
            raise InputError(
                "--measure takes steps on this machine, in one process; leave out --gpu and --ranks"
            )
        check_at_least("--ranks", self.ranks, 1)
        check_at_least("--nodes", self.nodes, 0)
        if self.gpu != "auto":
            find_card(self.gpu)


def estimate_command(arguments: list[str], program: str = "refimpl estimate") -> None:
    """Prints the table, and what would make a run fit that does not."""
    command, overrides = parsed_in_part(EstimateCommand, arguments, program)
    config = parsed(Config, overrides, f"{program} {command.config}", load_config(command.config))
    if command.measure:
        refuse(image_problems(config))
    from refimpl.train.budget.counted import count
    from refimpl.train.budget.fit import fits
    from refimpl.train.budget.levers import levers
    from refimpl.train.budget.plan import largest_work, plan_step
    from refimpl.train.budget.table import lever_table, table
    from refimpl.train.scale.communication import Cluster
    from refimpl.train.scale.table import scale_table, step_of
    from refimpl.train.sharding.mesh import check_sharding
    from refimpl.train.speed.estimated import roofline_speed, speed_lines

    card = _card(command.gpu)
    check_sharding(config.train, command.ranks)
    work = largest_work(config, command.ranks)
    counted = count(config, work.bucket)
    plan = plan_step(counted, work)
    print(table(config, counted, work, plan, card), flush=True)
    speed = _measured(config, work) if command.measure else roofline_speed(config, work, card)
    print(speed_lines(config, speed, card, command.ranks), flush=True)
    if command.nodes:
        step = step_of(config, counted, work, card)
        if step is None:
            raise InputError(
                f"--nodes: the speed of {card.name} in {config.train.precision} is not known; name another --gpu"
            )
        print(scale_table(step, Cluster(command.nodes)))
    if not fits(plan, card):
        print(lever_table(levers(config, counted, work, card), counted, card))
        sys.exit(1)


def _measured(config: Config, work: "Work") -> "Speed":
    """The speed of this machine's GPU, or of its CPU where torch sees none."""
    from refimpl.run.world import join_world
    from refimpl.train.speed.estimated import Speed
    from refimpl.train.speed.measured import MEASURED, measured_speed

    world = join_world(config.train.device)
    what = "GPU" if world.device.type == "cuda" else "CPU"
    how = f"measured on this machine's {what} over {MEASURED} steps after a warm-up, with random weights"
    return Speed(measured_speed(config, world), work.bucket, how)


def _card(name: str) -> Card:
    import torch

    if name != "auto":
        return find_card(name)
    return this_card(torch.device("cuda", 0)) if torch.cuda.is_available() else find_card("h100")
