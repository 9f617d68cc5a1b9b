"""What `refimpl train --help` says: how to call it, two examples, and the settings that most runs need."""

import ast
import inspect
import textwrap
import typing
from itertools import pairwise
from typing import Any

from refimpl.run.config import Config
from refimpl.run.presets import preset_names

ESSENTIALS = (
    "data.folder",
    "data.cache",
    "latents.weights",
    "text.folder",
    "train.init_from",
    "train.out",
    "train.resume",
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "optimizer.learning_rate",
    "lora.rank",
    "train.precision",
    "train.backend",
    "train.device",
    "train.seed",
)
WIDTH = 100  # columns
INDENT = 6


def usage(program: str) -> str:
    """How training is called, what PRESET may be, and two examples."""
    return f"""usage: {program} PRESET [--SECTION.FIELD VALUE ...]
       torchrun --nproc-per-node=N -m refimpl.train PRESET [--SECTION.FIELD VALUE ...]

PRESET is one of {", ".join(preset_names())}, or the path of a TOML file of your own.

examples:
  {program} tiny --train.steps 200 --train.out runs/first
  {program} novelai_v3 --data.folder my-images --latents.weights vae.safetensors --text.folder sdxl
"""


def essentials(program: str, name: str = "", config: Config | None = None) -> str:
    """The usage, and every setting of ESSENTIALS with its value in the configuration `name`, or its default."""
    lines = [
        usage(program),
        f"essential settings, with their values in {name}:" if name else "essential settings:",
    ]
    for place in ESSENTIALS:
        section, field = place.split(".")
        kind = typing.get_type_hints(Config)[section]
        value = getattr(kind if config is None else getattr(config, section), field)
        option = f"--{section}.{field.replace('_', '-')}"
        switch = f"{option}, --{section}.no-{field.replace('_', '-')}"
        lines.append(
            f"  {switch}" if isinstance(value, bool) else f"  {option} {type(value).__name__.upper()}"
        )
        text = f"{' '.join(field_docs(kind)[field].split())} ({name or 'default'}: {_shown(value)})"
        indent = " " * INDENT
        lines += textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    everything = f"`{program} {name or 'PRESET'} --help-all` lists every setting"
    return "\n".join([*lines, "", everything + " with its value in that preset." * (not name)])


def field_docs(settings: type) -> dict[str, str]:
    """The string below each field of a dataclass, by the field's name."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for entry, below in pairwise(definition.body):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    docs[entry.target.id] = text
    return docs


def _shown(value: Any) -> str:
    return "empty" if value == "" else str(value)
