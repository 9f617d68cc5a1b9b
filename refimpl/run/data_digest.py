"""Checks that a run continues with its own images, whose order depends on seed, epoch and ids (N §4.1.2)."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from refimpl.data.index.data_set import Index
from refimpl.errors import InputError
from refimpl.run.stage import StageData
from refimpl.storage.atomic import replace_text

DATA = "data.json"

Digest = dict[str, str | int]


def data_digest(index: Index) -> Digest:
    """Identifies images by their number and the SHA-256 of their ids, sizes and captions, in order."""
    sizes = np.stack([index.widths, index.heights]).astype("<i8")
    return {
        "images": len(index),
        "ids": _sha256(index.ids),
        "sizes": hashlib.sha256(sizes.tobytes()).hexdigest(),
        "captions": _sha256(index.captions),
    }


def check_same_data(run: Path, stages: Sequence[StageData], accept: bool) -> None:
    """Records a new run's data in `run`/data.json, and compares a resumed run's data with that record.

    accept  replaces the record where the data has changed
    Raises InputError when it has, saying what in each stage: the batches would no longer be those of the run.
    """
    path, now = run / DATA, [{"folder": data.stage.folder, **data_digest(data.index)} for data in stages]
    if path.exists() and not accept:
        changes = _changes(_read(path), now)
        if changes:
            listing = "\n  ".join(changes)
            raise InputError(
                f"train.resume: the images of {run} are not those that it began with:\n  {listing}\nRestore them, "
                "or continue with these by --train.accept-data: the order of the images then changes from here on"
            )
    replace_text(path, json.dumps(now, indent=1) + "\n")


def _changes(before: list[Digest], now: list[Digest]) -> list[str]:
    if len(before) != len(now):
        return [f"the run has {len(before)} stages, now {len(now)}"]
    changes = []
    for number, (old, new) in enumerate(zip(before, now, strict=True)):
        where = f"stage {number}, {new['folder']}"
        if old["images"] != new["images"]:
            changes.append(f"{where}: {old['images']} images, now {new['images']}")
        elif old["ids"] != new["ids"]:
            changes.append(f"{where}: the same number of images, with other ids")
        else:
            changes += [f"{where}: other {what}" for what in ("sizes", "captions") if old[what] != new[what]]
    return changes


def _read(path: Path) -> list[Digest]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return [{key: entry[key] for key in ("images", "ids", "sizes", "captions")} for entry in note]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as the record of a run's images ({error}); delete it, and the run takes the "
            "present images as its own"
        ) from error


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
