"""The text of `refimpl train --help`: how to call it, two examples, and the settings that most runs need."""

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise

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
       {program} --resume RUN [--SECTION.FIELD VALUE ...]
       torchrun --nproc-per-node=N -m refimpl.train PRESET [--SECTION.FIELD VALUE ...]

PRESET is one of {", ".join(preset_names())}, or the path of a TOML file of your own
(also: --config FILE), such as `refimpl init` writes.
RUN is the folder of a run, which goes on from its newest checkpoint with its own settings.

examples:
  {program} tiny --train.steps 200 --train.out runs/first
  {program} novelai_v3 --data.folder my-images --latents.weights vae.safetensors --text.folder sdxl
"""


def essentials(program: str, config: Config, name: str = "") -> str:
    """The usage, and every setting of ESSENTIALS with its value in the configuration.

    name  the preset or file of the configuration; empty for the defaults
    """
    lines = [
        usage(program),
        f"essential settings, with their values in {name}:" if name else "essential settings:",
    ]
    for place in ESSENTIALS:
        section, field = place.split(".")
        settings = getattr(config, section)
        value = getattr(settings, field)
        option, off = (f"--{section}.{no}{field.replace('_', '-')}" for no in ("", "no-"))
        lines.append(
            f"  {option}, {off}" if isinstance(value, bool) else f"  {option} {type(value).__name__.upper()}"
        )
        shown = "empty" if value == "" else value
        text = f"{' '.join(field_docs(type(settings))[field].split())} ({name or 'default'}: {shown})"
        indent = " " * INDENT
        lines += textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    whose = "" if name else " with its value in that preset"
    return "\n".join([*lines, "", f"`{program} {name or 'PRESET'} --help-all` lists every setting{whose}."])


@cache
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
