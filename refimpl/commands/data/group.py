"""`refimpl data`: index a data set, check it before any training, weight it by its tags (N §4.1.2, §4.3)."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from refimpl.commands.data.check import is_configuration
from refimpl.errors import InputError
from refimpl.names import LIKE, nearest
from refimpl.run.presets import load_config

# subcommand → (module, function taking (arguments, program), what it does). Imported only when called.
SUBCOMMANDS: dict[str, tuple[str, str, str]] = {
    "index": (
        "refimpl.commands.data.index",
        "index_command",
        "read any layout of images into one index file",
    ),
    "check": (
        "refimpl.commands.data.check",
        "check_command",
        "problems, sizes, aspects, buckets, tags and the plan, before any training",
    ),
    "tags": (
        "refimpl.commands.data.tags",
        "tags_command",
        "the loss weights that tags give, and the images with the largest and smallest",
    ),
}


def usage(program: str) -> str:
    """The subcommands and what each does."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, _, what) in SUBCOMMANDS.items()]
    short = f"`{program} CONFIG` is short for `{program} check CONFIG`: a configuration's own data."
    return "\n".join([f"usage: {program} COMMAND [ARGUMENTS]", "", *lines, "", short])


def data_command(arguments: list[str], program: str = "refimpl data") -> None:
    """Runs one of the subcommands. Raises InputError for an unknown one, naming the nearest."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(program))
        return
    if arguments[0] in SUBCOMMANDS:
        name, rest = arguments[0], arguments[1:]
    elif is_configuration(arguments[0]):
        name, rest = "check", arguments
    else:
        _refuse(arguments[0], program)
    module, function, _ = SUBCOMMANDS[name]
    command: Callable[[list[str], str], None] = getattr(import_module(module), function)
    command(rest, f"{program} {name}")


def _refuse(name: str, program: str) -> NoReturn:
    (near,) = nearest(name, SUBCOMMANDS)
    lines = [f"{name!r} is no command of {program}; the nearest is {near!r}"]
    if Path(name).exists():
        lines.append(
            f"look at a data set with `{program} check {name}`; a configuration's file ends in .toml"
        )
    elif not nearest(name, SUBCOMMANDS, least=LIKE):
        try:
            load_config(name)
        except InputError as error:
            lines.append(str(error))
    raise InputError("\n".join([*lines, usage(program)]))
