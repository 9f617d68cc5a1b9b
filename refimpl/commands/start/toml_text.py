"""Settings as a commented TOML file: what differs from the defaults, and what most runs change."""

import dataclasses
import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from refimpl.commands.train_help import ESSENTIALS, field_docs
from refimpl.run.config import Config

WIDTH = 100  # columns of comments
SENTENCE_END = r"(?<!App)(?<!Fig)(?<!Tab)\. (?=[A-Z0-9])"
# Settings that a file always has, so that they need not be looked up; those with an empty value stay away.
SHOWN = (
    *ESSENTIALS, "train.activation_checkpointing", "train.checkpoint_every", "train.sample_every", "sample.prompts",
    "buckets.max_area",
)  # fmt: skip
# Of these, the ones that stay away while they have their defaults.
LEFT_OUT = ("train.out", "train.resume", "train.device", "train.seed", "data.cache", "lora.rank")


def toml_text(config: Config, header: str, reasons: Mapping[str, str]) -> str:
    """A file from which `load_config` reads the same settings.

    header   what the file is, in a paragraph for each line
    reasons  why a setting has its value, by section and name
    """
    lines = [
        line
        for paragraph in header.splitlines()
        for line in textwrap.wrap(paragraph, WIDTH, initial_indent="# ", subsequent_indent="# ") or ["#"]
    ]
    for entry in dataclasses.fields(config):
        section = getattr(config, entry.name)
        if dataclasses.is_dataclass(section):
            lines += _section(entry.name, section, reasons)
    return "\n".join(lines) + "\n"


def _section(name: str, section: Any, reasons: Mapping[str, str]) -> list[str]:
    shown = [entry for entry in dataclasses.fields(section) if _is_shown(name, section, entry)]
    if not shown:
        return []
    docs, lines = field_docs(type(section)), ["", f"[{name}]"]
    for entry in shown:
        lines += textwrap.wrap(
            _comment(docs[entry.name], reasons.get(f"{name}.{entry.name}", "")), WIDTH,
            initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        lines.append(f"{entry.name} = {toml_value(getattr(section, entry.name))}")
    return lines


def _is_shown(name: str, section: Any, entry: dataclasses.Field) -> bool:
    place, value = f"{name}.{entry.name}", getattr(section, entry.name)
    if value != _default(entry):
        return True
    return place in SHOWN and place not in LEFT_OUT and value not in ("", ("",))


def _default(entry: dataclasses.Field) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return entry.default


def _comment(doc: str, reason: str) -> str:
    """The first sentence of a setting's description, and why it has its value."""
    first = re.split(SENTENCE_END, " ".join(doc.split()))[0].rstrip(".")
    return f"{first}. Here: {reason}." if reason else f"{first}."


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
