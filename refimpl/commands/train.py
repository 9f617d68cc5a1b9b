"""`refimpl train` and `python -m refimpl.train`: preset or TOML file, overrides, processes."""

import sys

from refimpl.commands.terminal import run_command
from refimpl.commands.train_help import essentials, usage
from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.presets import load_config, preset_label
from refimpl.tables import from_table

HELP, HELP_ALL = {"-h", "--help"}, "--help-all"


def parse(arguments: list[str], program: str = "python -m refimpl.train") -> tuple[Config, str]:
    """The configuration that a command line asks for, and the run's label.

    Exits with 0 after --help and --help-all and with 2 after an unknown option, as command lines do.
    Raises InputError for an unknown preset or a value that makes no sense.
    """
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    asks_for_all = HELP_ALL in arguments
    if not name and not asks_for_all and not HELP & set(arguments):
        raise InputError(f"name a preset or a TOML file first\n{usage(program)}")
    default = load_config(name) if name else from_table(Config, {}, "the defaults")
    if not asks_for_all and HELP & set(arguments):
        print(essentials(program, default, name))
        sys.exit(0)
    import tyro

    config = tyro.cli(
        Config,
        default=default,
        args=["--help"] if asks_for_all else arguments[1:],
        prog=f"{program} {name or 'PRESET'}",
        description=f"Trains the configuration {name or 'PRESET'!r}; every setting can be overridden.",
    )
    return config, preset_label(name)


def train_command(arguments: list[str], program: str = "python -m refimpl.train") -> None:
    """Parses, prepares and trains; every process of a torchrun calls it."""
    config, label = parse(arguments, program)
    from refimpl.run.threads import use_threads
    from refimpl.run.world import join_world, leave_world, lost_peers_named
    from refimpl.train.budget.check import check_memory
    from refimpl.train.loop import train
    from refimpl.train.setup.out_folder import removed_if_empty, run_folder
    from refimpl.train.setup.prepare import prepare
    from refimpl.train.setup.run_lock import run_lock

    use_threads(config.train, config.unet, config.vae)
    world = join_world(config.train.device)
    try:
        with lost_peers_named(world):
            check_memory(config, world)
            run = run_folder(config, label, world)
            if world.is_main:
                print(f"run folder: {run}", flush=True)
            with removed_if_empty(run, world), run_lock(run, world):
                train(config, run, prepare(config, run, world), world)
        if world.is_main:
            print(f"done: {run}\nsample from it: python -m refimpl.sample {run} --prompts 'completely black'")
    finally:
        leave_world(world)


def main() -> None:
    """Entry point of `python -m refimpl.train`."""
    run_command(lambda: train_command(sys.argv[1:]))
