"""The rows of metrics.jsonl: whole lines of JSON, of which a continued run keeps those that it does not run again."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any, TextIO

from refimpl.errors import InputError
from refimpl.storage.atomic import replace_text
from refimpl.tables import parsed_json


def open_rows(path: Path, start: int) -> TextIO:
    """The file to append rows to, holding the whole rows of steps 0 … `start` if the run is continued."""
    kept = []
    if start and path.exists():
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror}; move whatever is in its place"
            ) from error
        for line in text.split("\n")[:-1]:
            # A process killed while writing leaves half a line.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if parsed_json(line)["step"] <= start:
                    kept.append(line + "\n")
    replace_text(path, "".join(kept))
    return path.open("a", encoding="utf-8")


def write_row(file: TextIO, step: int, values: dict[str, Any]) -> None:
    """Appends one row. Raises InputError when the disk refuses it."""
    try:
        file.write(json.dumps({"step": step, **values}) + "\n")
        file.flush()
    except OSError as error:
        raise InputError(
            f"could not write {file.name}: {error.strerror}; free space and continue with --resume"
        ) from error


def representable(value: Any) -> Any:
    """The value, or null in place of every number that is not finite, since JSON cannot represent it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [representable(entry) for entry in value] if isinstance(value, list) else value
