"""A preset's name or a TOML file's path → Config."""

import shlex
import tomllib
from importlib import resources
from pathlib import Path

from refimpl.errors import InputError
from refimpl.names import near_path, nearest
from refimpl.run.config import Config
from refimpl.run.settings.recognised import read_table, refuse_foreign
from refimpl.tables import from_table


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("refimpl") / "configs"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_config(name_or_path: str) -> Config:
    """The Config of a preset (`tiny`, `sdxl_base`, …) or of a TOML file.

    Raises InputError for an unknown name, invalid TOML, another trainer's configuration, unknown keys (each with the
    nearest), values of the wrong type, or a combination that cannot be trained.
    """
    if not name_or_path:
        raise InputError(f"name a preset ({', '.join(preset_names())}) or a TOML file")
    if name_or_path not in preset_names():
        path = Path(name_or_path)
        if not _is_file(path):
            raise InputError(
                f"{name_or_path!r} is neither a preset ({', '.join(preset_names())}) nor a TOML file; "
                f"{_instead(path)}"
            )
        table = read_table(path)
        refuse_foreign(table, name_or_path)
        return from_table(Config, table, name_or_path)
    text = (resources.files("refimpl") / "configs" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    return from_table(Config, tomllib.loads(text), name_or_path)


def _instead(path: Path) -> str:
    """What a name that is no preset and no file may have been meant as."""
    if path.is_dir():
        return (
            f"it is a folder: `refimpl init {shlex.quote(str(path))}` writes settings for the images in one"
        )
    if path.suffix == ".toml" or len(path.parts) > 1:
        return "it is no regular file" if path.exists() else f"there is no such file{near_path(path)}"
    return f"the nearest preset is {nearest(str(path), preset_names())[0]!r}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise InputError(f"could not read {path}: {error.strerror}") from error


def preset_label(name_or_path: str) -> str:
    """The label of this configuration's runs: the preset's name or the file's stem."""
    return Path(name_or_path).stem
