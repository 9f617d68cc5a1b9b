"""`refimpl train` and `python -m refimpl.train`: preset, TOML file or a run to be continued, overrides, processes."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from refimpl.commands.terminal import parsed, run_command
from refimpl.commands.train_help import essentials, usage
from refimpl.errors import STOPPED, InputError, WrongSettings
from refimpl.run.config import Config
from refimpl.run.presets import load_config, preset_label
from refimpl.run.settings.paths import check_here, problems_here
from refimpl.tables import from_table

HELP, HELP_ALL = {"-h", "--help"}, "--help-all"
RESUME, CONFIG_OPTION = "--resume", "--config"


def parse(arguments: list[str], program: str = "python -m refimpl.train") -> tuple[Config, str]:
    """The configuration that a command line asks for, and the run's label.

    After `--resume RUN` that is the run's own, changed by what else is given.
    Exits with 0 after --help and --help-all and with 2 after an unknown option, as command lines do.
    Raises InputError for an unknown preset, a folder that holds no run, or a value that makes no sense.
    """
    if is_resume(arguments):
        return _parse_resume(arguments, program)
    arguments = without_config_option(arguments)
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    asks_for_all = HELP_ALL in arguments
    if not name and not asks_for_all and not HELP & set(arguments):
        raise InputError(f"name a preset or a TOML file first\n{usage(program)}")
    rest, called = arguments[1:], f"{program} {name or 'PRESET'}"
    is_help = bool(HELP & set(arguments)) and not asks_for_all
    default = _named(name)
    if isinstance(default, WrongSettings):
        raise _all_that_is_wrong(default, [] if is_help or asks_for_all else rest, called)
    if is_help:
        print(essentials(program, default, name))
        sys.exit(0)
    description = f"Trains the configuration {name or 'PRESET'!r}; every setting can be overridden."
    config = _with_options(["--help"] if asks_for_all else rest, called, default, description)
    return config, preset_label(name)


def _named(name: str) -> Config | WrongSettings:
    """The configuration of that name, the defaults for none, or their refusal."""
    try:
        return load_config(name) if name else from_table(Config, {}, "the defaults")
    except WrongSettings as error:
        return error


def _with_options(words: list[str], called: str, default: Config, description: str) -> Config:
    """The configuration that options make of another. Raises InputError listing all that is wrong with it."""
    try:
        return parsed(Config, words, called, default, description)
    except InputError:
        pass  # what is raised now has no error before it
    raise _all_that_is_wrong(WrongSettings("", [], default), words, called)


def _all_that_is_wrong(error: WrongSettings, words: list[str], called: str) -> InputError:
    """The refusal of settings, with what else of them can't be used here: options, paths, a library, a GPU.

    words  the options of the command line, which come before what the settings say
    """
    known = {problem.text for problem in error.problems}
    closest = error.closest
    if words and closest is not None:
        said, closest = _of_options(words, called, closest)
        error = error.with_more(text for text in said if text not in known)
    return error if closest is None else error.with_more(problems_here(closest))


def _of_options(words: list[str], called: str, default: Config) -> tuple[list[str], Config | None]:
    """What is wrong with the values of options, and the settings without those; None where there are none such."""
    options: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not options:
            options.append([])
        options[-1].append(word)
    said: list[str] = []
    while True:
        try:
            return said, parsed(Config, [word for option in options for word in option], called, default)
        except WrongSettings as error:
            return [*said, *(problem.text for problem in error.problems)], error.closest
        except InputError as error:
            said.append(str(error))
        except SystemExit:  # an unknown option, which has been told
            return said, default
        wrong = _setting(said[-1].split()[0])
        left = [option for option in options if _setting(option[0]) != wrong]
        if len(left) == len(options):
            return said, None
        options = left


def _setting(word: str) -> str:
    """The setting that an option, or the first word of a message, names."""
    return word.lstrip("-").partition("=")[0].rstrip(":").replace("-", "_").replace(".no_", ".")


def without_config_option(arguments: list[str]) -> list[str]:
    """The same command line where `--config FILE` comes first: that is FILE by itself."""
    if not arguments or arguments[0].split("=")[0] != CONFIG_OPTION:
        return arguments
    _, is_joined, joined = arguments[0].partition("=")
    return [joined, *arguments[1:]] if is_joined else arguments[1:]


def is_resume(arguments: list[str]) -> bool:
    """Whether a command line continues a run with the run's own settings: `--resume RUN`."""
    return any(word == RESUME or word.startswith(f"{RESUME}=") for word in arguments)


def _parse_resume(arguments: list[str], program: str) -> tuple[Config, str]:
    """The settings of the run that `--resume` names, changed by the options given besides."""
    from refimpl.train.setup.resumed import own_settings

    place = next(i for i, word in enumerate(arguments) if word.split("=")[0] == RESUME)
    _, is_joined, joined = arguments[place].partition("=")
    named = [joined] if is_joined else [word for word in arguments[place + 1 : place + 2] if word[:1] != "-"]
    rest = [*arguments[:place], *arguments[place + 2 - bool(is_joined) :]]
    if not named or not named[0]:
        raise InputError(f"{RESUME} takes the folder of a run\n{usage(program)}")
    if rest and not rest[0].startswith("-"):
        raise InputError(f"{RESUME} {named[0]} reads the run's own settings; leave out {rest[0]!r}")
    run, called = named[0], f"{program} {RESUME} {named[0]}"
    own = own_settings(Path(run), RESUME)
    if HELP & set(rest) and HELP_ALL not in rest:
        print(essentials(program, own, f"{RESUME} {run}"))
        sys.exit(0)
    default = replace(own, train=replace(own.train, out=run, resume=True, accept_data=False))
    description = f"Continues the run {run!r} with its own settings, changed by those given."
    config = _with_options(["--help"] if HELP_ALL in rest else rest, called, default, description)
    if (config.train.out, config.train.resume) != (run, True):
        raise InputError(f"{RESUME} {run} says which run goes on; leave out --train.out and --train.resume")
    return config, Path(run).name


def train_command(arguments: list[str], program: str = "python -m refimpl.train") -> None:
    """Parses, prepares and trains; every process of a torchrun calls it.

    Exits with 75 when a signal has stopped the run and all of it is saved.
    """
    config, label = parse(arguments, program)
    check_here(config)
    from refimpl.run.threads import use_threads
    from refimpl.run.world import join_world, leave_world, lost_peers_named
    from refimpl.train.budget.check import check_memory
    from refimpl.train.loop import train
    from refimpl.train.placement import resolve
    from refimpl.train.setup.out_folder import absent_folders, removed_if_empty, run_folder
    from refimpl.train.setup.prepare import prepare
    from refimpl.train.setup.resumed import settled
    from refimpl.train.setup.run_lock import run_lock
    from refimpl.train.watch.restart import begun_run, has_finished, remember_run
    from refimpl.train.watch.signals import stop_signals

    use_threads(config.train, config.unet, config.vae)
    is_complete = True
    with stop_signals() as signals:
        world = join_world(config.train.device)
        with lost_peers_named(world):
            config = settled(begun_run(config, world), world)
            is_left = not has_finished(config, world)
            if is_left and world.is_main:
                print(resolve(config.train, world.device, world.size), flush=True)
            check_memory(config, world)
            is_own = is_resume(arguments)
            made = absent_folders(config.train.out)
            run = run_folder(config, label, world, is_own) if is_left else Path(config.train.out)
            remember_run(run, world)
            if world.is_main:
                print(f"run folder: {run}", flush=True)
            if is_left:
                with removed_if_empty(run, world, made), run_lock(run, world):
                    prepared = prepare(config, run, world)
                    with signals.noted(world.barrier):
                        is_complete = train(config, run, prepared, world, signals.asked)
        leave_world(world)
    if world.is_main:
        print(_done(run, config.sample.prompts) if is_complete else _stopped(run, world.size), flush=True)
    if not is_complete:
        sys.exit(STOPPED)


def _done(run: Path, prompts: Sequence[str]) -> str:
    prompt = f" --prompts {shlex.quote(prompts[0])}" if prompts[0] else ""
    return f"done: {run}\nsample from it: python -m refimpl.sample {run}{prompt}"


def _stopped(run: Path, ranks: int) -> str:
    """What to call to go on."""
    many = f"torchrun --nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', ranks)} -m refimpl.train"
    return f"stopped and saved: {run}\ngo on with: {many if ranks > 1 else 'refimpl train'} --resume {run}"


def main() -> None:
    """Entry point of `python -m refimpl.train`."""
    run_command(lambda: train_command(sys.argv[1:]))
