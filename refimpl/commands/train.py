"""The command line of training: preset or TOML file, overrides, processes."""

import sys

import torch
import tyro

from refimpl.commands.terminal import run_command
from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.presets import load_config, preset_label, preset_names
from refimpl.run.world import join_world, leave_world, lost_peers_named
from refimpl.train.loop import train
from refimpl.train.setup.out_folder import removed_if_empty, run_folder
from refimpl.train.setup.prepare import prepare

USAGE = f"""usage: python -m refimpl.train PRESET [--SECTION.FIELD VALUE ...]
       torchrun --nproc-per-node=N -m refimpl.train PRESET [--SECTION.FIELD VALUE ...]

PRESET is one of {", ".join(preset_names())}, or the path of a TOML file of your own.
`python -m refimpl.train PRESET --help` lists every setting with its value in that preset.
"""


def parse(arguments: list[str], program: str = "python -m refimpl.train") -> tuple[Config, str]:
    """The configuration that a command line asks for, and the run's label.

    Exits with 0 after --help and with 2 after an unknown option, as command lines do.
    Raises InputError for an unknown preset or a value that makes no sense.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise InputError(f"name a preset or a TOML file first\n{USAGE}")
    default = load_config(arguments[0])
    config = tyro.cli(
        Config,
        default=default,
        args=arguments[1:],
        prog=f"{program} {arguments[0]}",
        description=f"Trains the configuration {arguments[0]!r}; every setting can be overridden.",
    )
    return config, preset_label(arguments[0])


def train_command(arguments: list[str], program: str = "python -m refimpl.train") -> None:
    """Parses, prepares and trains; every process of a torchrun calls it."""
    config, label = parse(arguments, program)
    if config.train.reduction == "ordered":
        # Threads share out the sums within a layer, so their number, torch's choice, would change last bits.
        torch.set_num_threads(config.train.threads or 1)
    world = join_world(config.train.device)
    try:
        with lost_peers_named(world):
            run = run_folder(config, label, world)
            if world.is_main:
                print(f"run folder: {run}", flush=True)
            with removed_if_empty(run, world):
                train(config, run, prepare(config, run, world), world)
        if world.is_main:
            print(f"done: {run}\nsample from it: python -m refimpl.sample {run} --prompts 'completely black'")
    finally:
        leave_world(world)


def main() -> None:
    """Entry point of `python -m refimpl.train`."""
    run_command(lambda: train_command(sys.argv[1:]))
