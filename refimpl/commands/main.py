"""`refimpl COMMAND …`: every command of the project under one name."""

import sys
from collections.abc import Callable
from importlib import import_module

from refimpl.commands.terminal import run_command
from refimpl.errors import InputError

# command → (module, function taking (arguments, program), what it does). Imported only when asked for.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": (
        "refimpl.commands.demo",
        "demo_command",
        "run the main job end to end on a small data set and report",
    ),
    "data": ("refimpl.commands.data.check", "data_command", "index a data set, check it, weigh its tags"),
    "stats": (
        "refimpl.commands.data.stats",
        "stats_command",
        "measure a data set's latents: scale-and-shift",
    ),
    "cache": (
        "refimpl.commands.data.cache",
        "cache_command",
        "encode a data set's images and captions once (also under torchrun)",
    ),
    "train": (
        "refimpl.commands.train",
        "train_command",
        "train a configuration (also: python -m refimpl.train)",
    ),
    "train-decoder": (
        "refimpl.commands.train_decoder",
        "train_decoder_command",
        "finetune an autoencoder's decoder on images",
    ),
    "sample": (
        "refimpl.commands.sample",
        "sample_command",
        "draw images from a run (also: python -m refimpl.sample)",
    ),
    "inspect": (
        "refimpl.commands.files.inspect",
        "inspect_command",
        "say what a checkpoint holds, and what it predicts and why",
    ),
    "convert": (
        "refimpl.commands.files.convert",
        "convert_command",
        "single file, diffusers folder or run: one into the other",
    ),
    "export": (
        "refimpl.commands.files.convert",
        "export_command",
        "write a run's checkpoint for ComfyUI, A1111 or diffusers",
    ),
    "merge-lora": (
        "refimpl.commands.files.merge_lora",
        "merge_lora_command",
        "fold a LoRA into a checkpoint's weights",
    ),
    "export-lora": (
        "refimpl.commands.files.export_lora",
        "export_lora_command",
        "write the LoRA that a run has trained for ComfyUI, A1111 or diffusers",
    ),
    "figures": ("refimpl.commands.figures", "figures_command", "draw the paper's figures, or those of a run"),
    "doctor": (
        "refimpl.commands.doctor",
        "doctor_command",
        "say what is installed, what was built, and whether it works",
    ),
}


def usage() -> str:
    """The commands and what each does."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: refimpl COMMAND [ARGUMENTS]", "", *lines, "", "`refimpl COMMAND --help` says more of each."]
    )


def dispatch(arguments: list[str]) -> None:
    """Runs the command that `arguments` names. Raises InputError for an unknown one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise InputError(f"{name!r} is no command\n{usage()}")
    module, function, _ = COMMANDS[name]
    command: Callable[[list[str], str], None] = getattr(import_module(module), function)
    command(rest, f"refimpl {name}")


def main() -> None:
    """Entry point of `refimpl`."""
    run_command(lambda: dispatch(sys.argv[1:]))
