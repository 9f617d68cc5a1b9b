"""`refimpl init`: a file of settings that trains on a folder of images, or another trainer's settings as ours."""

import os
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from refimpl.commands.start.questions import Questions, one_of
from refimpl.commands.start.refused import refuse_fields
from refimpl.commands.start.toml_text import toml_text
from refimpl.commands.start.written import Written
from refimpl.commands.terminal import parsed, parsed_in_part
from refimpl.errors import InputError, refused_write
from refimpl.run.config import Config
from refimpl.run.here.files import absent, wrong_kind
from refimpl.run.presets import load_config, preset_names
from refimpl.run.settings.paths import IS_CHECKPOINT, data_problem, refuse
from refimpl.run.settings.recognised import read_foreign
from refimpl.run.settings.typed import setting_names
from refimpl.tables import from_table
from refimpl.train.budget.cards import find_card

WAYS = ("lora", "whole")
SUFFIX = ".toml"


@dataclass(frozen=True)
class InitCommand:
    """Looks at the images, a checkpoint and the card, and writes a commented TOML file that trains.

    On a terminal it asks for what is not given, five questions at most; with --yes, or without a terminal, none. All
    settings can be overridden as in training: `--train.steps 500`.
    """

    folder: Annotated[str, tyro.conf.Positional] = ""
    """Images with captions beside them, an index, or any other data set that `refimpl data index` reads."""
    checkpoint: str = ""
    """What to train further: a .safetensors file, a diffusers folder or a run; empty for a small network, which is
    trained from nothing."""
    train: str = ""
    """What of the checkpoint is trained: lora (adapters beside its weights; the default) or whole (all of its
    UNet)."""
    gpu: str = "auto"
    """Card that it will be trained on, as in `refimpl estimate`: a name, an amount of memory, cpu, or auto for this
    machine's. Not with --import, which keeps the other trainer's settings."""
    out: str = ""
    """TOML file to write; empty for the name of the folder with .toml, here."""
    yes: bool = False
    """Ask nothing, and take every default."""
    import_: Annotated[str, tyro.conf.arg(name="import")] = ""
    """Translate another trainer's settings instead: a TOML file of kohya's sd-scripts, or a JSON file of OneTrainer.
    What could not be carried over is listed, field by field."""
    skip_unknown: bool = False
    """With --import: leave out fields that the other trainer does not have, instead of refusing the file."""

    def __post_init__(self) -> None:
        for path in (self.folder, self.checkpoint, self.out, self.import_):
            if not path.isprintable():  # it could not be written into a text file
                raise InputError(f"{path!r} is not UTF-8, or holds control characters; rename it")
        if self.train:
            problem = one_of(WAYS)(self.train)
            if problem:
                raise InputError(f"--train {problem}")
        if self.gpu not in ("auto", "cpu"):
            find_card(self.gpu)
        if self.import_ and (self.folder or self.checkpoint or self.train):
            raise InputError(
                "--import reads images and checkpoint from the other trainer's file; leave out FOLDER, --checkpoint "
                "and --train, and override what differs (--data.folder, --train.init-from)"
            )
        if self.import_ and self.gpu != "auto":
            raise InputError(
                f"--gpu {self.gpu}: --import keeps the other trainer's settings and plans for no card; leave it out, "
                "and ask `refimpl estimate` whether what is written fits"
            )
        if self.skip_unknown and not self.import_:
            raise InputError("--skip-unknown is for --import alone")


def init_command(arguments: list[str], program: str = "refimpl init") -> None:
    """Writes the file, and says what it holds and what to call next. Nothing is written where anything is wrong."""
    command, words = parsed_in_part(InitCommand, arguments, program)

    def overridden(config: Config) -> Config:
        return parsed(Config, words, program, config)

    given = _settings_in(words)
    if not set(given) <= set(setting_names()):
        overridden(load_config("tiny"))  # which tells a mistyped setting, before anything is loaded
    if command.import_:
        source = Path(command.import_)
        out = out_file(command.out, f"{source.stem}-refimpl")
        translation = read_foreign(source)
        refuse_fields(translation, str(source), command.skip_unknown)
        from refimpl.commands.start.imported import imported

        written = imported(translation, source, overridden)
    else:
        questions = Questions(is_asking=sys.stdin.isatty() and not command.yes)
        folder = command.folder or questions.ask("Folder of images:", "", _is_data)
        if not folder:
            raise InputError(f"name a folder of images: {program} FOLDER")
        refuse([problem for problem in (_is_data(folder), _is_there(command.checkpoint)) if problem])
        whole = Path(folder).resolve()
        out = out_file(command.out, (whole.stem if whole.is_file() else whole.name) or "settings")
        checkpoint = command.checkpoint or questions.ask(
            "Checkpoint to train further (Return for none):", "", _is_there
        )
        from refimpl.commands.start.first import Wishes, first_settings

        wishes = Wishes(
            folder, checkpoint, command.train, command.gpu, out.stem, frozenset(given), overridden
        )
        written = first_settings(wishes, questions)
    write(out, written, f"{program} {shlex.join(arguments)}")


def write(out: Path, written: Written, called: str) -> None:
    """Writes the file, whole or not at all, and prints what was found and what to call next.

    called  the command line, for the file's first line
    """
    from refimpl.storage.atomic import replace_text

    name = shlex.quote(str(out))
    estimate = " ".join(filter(None, (f"refimpl estimate {name}", written.estimate)))
    header = (
        f"Settings of refimpl, written by `{called}`.\n{written.summary}\n\n"
        f"to train:  refimpl train {out}\nspeed and hours:  {estimate}\n"
        f"every setting:  refimpl train {out} --help-all"
    )
    text = toml_text(written.config, header, written.reasons)
    read = from_table(Config, tomllib.loads(text), str(out))
    assert read == written.config, "the file would not say what was chosen"
    replace_text(out, text)
    print("\n".join(written.report))
    print(f"wrote {name}\ntrain with:  refimpl train {name}\nspeed and hours:  {estimate}")


def out_file(named: str, stem: str) -> Path:
    """The file to write. Raises InputError where it is there already, or could not be written."""
    out = Path(named or f"{stem}{SUFFIX}")
    if out.suffix != SUFFIX:
        raise InputError(f"--out {out} must end in {SUFFIX}")
    try:
        is_there = out.exists()
    except OSError as error:  # a name that is too long
        raise InputError(refused_write(out, error)) from error
    if is_there:
        raise InputError(f"{out} exists; name another file with --out")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    if out.stem in preset_names():
        raise InputError(f"--out {out} has the name of a preset; name another")
    _check_writable(out)
    return out


def _check_writable(out: Path) -> None:
    """Raises InputError where the file could not be made, before anything is looked at that takes long."""
    trial = out.with_name(f".{out.name}.trying-{os.getpid()}")
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise InputError(refused_write(out, error)) from error


def _is_data(answer: str) -> str | None:
    return data_problem("the folder", answer) if answer else "name a folder of images"


def _is_there(answer: str) -> str | None:
    why = answer and (absent(answer) or wrong_kind(answer))
    return f"{answer} {why}; {IS_CHECKPOINT}" if why else None


def _settings_in(words: list[str]) -> list[str]:
    """The settings that options override: "--train.no-resume" → "train.resume"."""
    options = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    return [option.replace(".no_", ".") for option in options]
