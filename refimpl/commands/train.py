"""`refimpl train` and `python -m refimpl.train`: preset or TOML file, overrides, processes."""

import os
import sys
from pathlib import Path

from refimpl.commands.terminal import run_command
from refimpl.commands.train_help import essentials, usage
from refimpl.errors import STOPPED, InputError
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
    """Parses, prepares and trains; every process of a torchrun calls it.

    Exits with 75 when a signal has stopped the run and all of it is saved.
    """
    config, label = parse(arguments, program)
    from refimpl.run.threads import use_threads
    from refimpl.run.world import join_world, leave_world, lost_peers_named
    from refimpl.train.budget.check import check_memory
    from refimpl.train.loop import train
    from refimpl.train.setup.out_folder import removed_if_empty, run_folder
    from refimpl.train.setup.prepare import prepare
    from refimpl.train.watch.restart import begun_run, has_finished, remember_run
    from refimpl.train.watch.signals import stop_signals

    use_threads(config.train, config.unet, config.vae)
    is_complete = True
    with stop_signals() as signals:
        world = join_world(config.train.device)
        with lost_peers_named(world):
            check_memory(config, world)
            config = begun_run(config, world)
            is_left = not has_finished(config, world)
            run = run_folder(config, label, world) if is_left else Path(config.train.out)
            remember_run(run, world)
            if world.is_main:
                print(f"run folder: {run}", flush=True)
            if is_left:
                with removed_if_empty(run, world):
                    prepared = prepare(config, run, world)
                    with signals.noted():
                        is_complete = train(config, run, prepared, world, signals.asked)
        leave_world(world)
    if world.is_main:
        print(_done(run) if is_complete else _stopped(run, world.size), flush=True)
    if not is_complete:
        sys.exit(STOPPED)


def _done(run: Path) -> str:
    return f"done: {run}\nsample from it: python -m refimpl.sample {run} --prompts 'completely black'"


def _stopped(run: Path, ranks: int) -> str:
    """What to call to go on."""
    many = f"torchrun --nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', ranks)} -m refimpl.train"
    return f"stopped and saved: {run}\ngo on with: {many if ranks > 1 else 'refimpl train'} --resume {run}"


def main() -> None:
    """Entry point of `python -m refimpl.train`."""
    run_command(lambda: train_command(sys.argv[1:]))
