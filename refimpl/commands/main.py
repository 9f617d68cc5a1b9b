"""`refimpl COMMAND …`: every command of the project under one name."""

import sys
from collections.abc import Callable
from importlib import import_module

from refimpl.commands.terminal import run_command
from refimpl.errors import InputError
from refimpl.names import nearest

# Purpose → command → (module, function taking (arguments, program), what it does).
# Modules are imported only when their command is called.
GROUPS: dict[str, dict[str, tuple[str, str, str]]] = {
    "data": {
        "data": (
            "refimpl.commands.data.group",
            "data_command",
            "index a data set, check it, weight it by its tags",
        ),
        "stats": (
            "refimpl.commands.data.stats",
            "stats_command",
            "measure the scale-and-shift of a data set's latents",
        ),
        "cache": (
            "refimpl.commands.data.cache",
            "cache_command",
            "encode a data set's images and captions once (also under torchrun)",
        ),
    },
    "train": {
        "init": (
            "refimpl.commands.start.init",
            "init_command",
            "write settings that train on a folder of images, or translate another trainer's",
        ),
        "train": (
            "refimpl.commands.train",
            "train_command",
            "train a configuration (also: python -m refimpl.train)",
        ),
        "estimate": (
            "refimpl.commands.estimate",
            "estimate_command",
            "say whether a configuration fits a GPU, how fast it is, and when it ends",
        ),
        "train-decoder": (
            "refimpl.commands.train_decoder",
            "train_decoder_command",
            "finetune an autoencoder's decoder on images",
        ),
        "demo": (
            "refimpl.commands.demo",
            "demo_command",
            "run the whole pipeline on a small data set and write a report",
        ),
    },
    "sample": {
        "sample": (
            "refimpl.commands.sample",
            "sample_command",
            "draw images from a run (also: python -m refimpl.sample)",
        ),
    },
    "files": {
        "inspect": (
            "refimpl.commands.files.inspect",
            "inspect_command",
            "say what a checkpoint holds, and what it predicts and why",
        ),
        "convert": (
            "refimpl.commands.files.convert",
            "convert_command",
            "convert between single files, diffusers folders and runs",
        ),
        "export": (
            "refimpl.commands.files.export",
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
        "push": (
            "refimpl.commands.files.push",
            "push_command",
            "put a finished run on a Hugging Face hub, with a model card",
        ),
    },
    "report": {
        "report": (
            "refimpl.commands.pages.report",
            "report_command",
            "write a run's page: curves, samples, settings, faults, and what matters first",
        ),
        "studio": (
            "refimpl.commands.studio",
            "studio_command",
            "look at runs and data on a local page, while they change",
        ),
        "figures": (
            "refimpl.commands.paper.figures",
            "figures_command",
            "draw the paper's figures, or those of a run",
        ),
        "claims": (
            "refimpl.commands.paper.claims",
            "claims_command",
            "answer the testable statements of the reports, by computing what can be",
        ),
    },
    "health": {
        "conformance": (
            "refimpl.commands.conformance",
            "conformance_command",
            "say where another implementation deviates from the papers, and by how much",
        ),
        "doctor": (
            "refimpl.commands.doctor",
            "doctor_command",
            "say what is installed, what was built, and whether it works",
        ),
    },
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def usage() -> str:
    """The commands by group, and what each does."""
    width = max(map(len, COMMANDS))
    lines = []
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<{width}}  {what}" for name, (_, _, what) in group.items())]
    return "\n".join(
        ["usage: refimpl COMMAND [ARGUMENTS]", *lines, "", "`refimpl COMMAND --help` explains each command."]
    )


def dispatch(arguments: list[str]) -> None:
    """Runs the command that `arguments` names. Raises InputError for an unknown one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        raise InputError(f"{name!r} is no command; the nearest is {near[0]!r}\n{usage()}")
    module, function, _ = COMMANDS[name]
    command: Callable[[list[str], str], None] = getattr(import_module(module), function)
    command(rest, f"refimpl {name}")


def main() -> None:
    """Entry point of `refimpl`."""
    run_command(lambda: dispatch(sys.argv[1:]))
