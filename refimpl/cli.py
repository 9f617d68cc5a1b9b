"""`refimpl COMMAND …`: every command of the project under one name."""

import sys
from collections.abc import Callable
from importlib import import_module

from refimpl.errors import InputError
from refimpl.terminal import run_command

# command → (module, function taking (arguments, program), what it does). Imported only when asked for.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("refimpl.demo", "demo_command", "run the main job end to end on a small data set and report"),
    "data": ("refimpl.report.data_command", "data_command", "index a data set, check it, weigh its tags"),
    "stats": (
        "refimpl.train.stats_command",
        "stats_command",
        "measure a data set's latents: scale-and-shift",
    ),
    "cache": (
        "refimpl.train.cache_command",
        "cache_command",
        "encode a data set's images and captions once (also under torchrun)",
    ),
    "train": (
        "refimpl.train.command",
        "train_command",
        "train a configuration (also: python -m refimpl.train)",
    ),
    "train-decoder": (
        "refimpl.train.decoder_command",
        "train_decoder_command",
        "finetune an autoencoder's decoder on images",
    ),
    "sample": (
        "refimpl.sample.command",
        "sample_command",
        "draw images from a run (also: python -m refimpl.sample)",
    ),
    "inspect": (
        "refimpl.interop.inspect_command",
        "inspect_command",
        "say what a checkpoint holds, and what it predicts and why",
    ),
    "convert": (
        "refimpl.interop.convert_command",
        "convert_command",
        "single file, diffusers folder or run: one into the other",
    ),
    "export": (
        "refimpl.interop.convert_command",
        "export_command",
        "write a run's checkpoint for ComfyUI, A1111 or diffusers",
    ),
    "merge-lora": (
        "refimpl.interop.merge_lora_command",
        "merge_lora_command",
        "fold a LoRA into a checkpoint's weights",
    ),
    "export-lora": (
        "refimpl.interop.export_lora_command",
        "export_lora_command",
        "write the LoRA that a run has trained for ComfyUI, A1111 or diffusers",
    ),
    "figures": ("refimpl.report.command", "figures_command", "draw the paper's figures, or those of a run"),
    "doctor": (
        "refimpl.doctor",
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
