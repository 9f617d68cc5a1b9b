"""Checks that a run continues with its own images, whose order depends on seed, epoch and ids (N §4.1.2)."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from refimpl.data.index.content import contents, stamps
from refimpl.data.index.data_set import Index
from refimpl.errors import InputError
from refimpl.run.shared_work import gathered
from refimpl.run.stage import StageData
from refimpl.run.world import World
from refimpl.storage.atomic import replace_text
from refimpl.tables import parsed_json

DATA = "data.json"
MOST_STAMPED = (
    2**18
)  # images whose sizes and times are read; a data set of more is sampled, at even distances
ALONE = World(0, 1, torch.device("cpu"))

Digest = dict[str, Any]


def data_digest(index: Index) -> Digest:
    """Identifies images by their number and the SHA-256 of their ids, sizes and captions, in order."""
    sizes = np.stack([index.widths, index.heights]).astype("<i8")
    return {
        "images": len(index),
        "ids": _sha256(index.ids),
        "sizes": hashlib.sha256(sizes.tobytes()).hexdigest(),
        "captions": _sha256(index.captions),
    }


def files_digest(index: Index, how: str, world: World = ALONE) -> Digest:
    """Identifies the image files by the SHA-256 of what `how` reads of each; the ranks share the work.

    how      "stat": sizes in bytes ("bytes") and modification times ("times"), of at most MOST_STAMPED files
             "sha256": the bytes of every file ("pixels")
    returns  the same on every rank and for any number of them
    """
    read = stamps if how == "stat" else contents
    step = -(-len(index) // MOST_STAMPED) if how == "stat" else 1
    rows = range(0, len(index), max(step, 1))
    found = np.empty((len(rows), 2), "<i8")
    for rank, part in enumerate(gathered(world, read(index.paths, rows[world.rank :: world.size]))):
        found[rank :: world.size] = part
    if how == "stat":
        return {"bytes": _sha256_of(found[:, 0]), "times": _sha256_of(found[:, 1])}
    return {"pixels": _sha256_of(found)}


def check_same_data(
    run: Path, stages: Sequence[StageData], accept: bool, how: str = "stat", world: World = ALONE
) -> None:
    """Records a new run's data in `run`/data.json, and compares a resumed run's data with that record.

    accept  replaces the record where the data has changed
    how     what tells of changed image files, `data.digest`; a record that lacks it is not compared in this
    Every rank must call it. Raises InputError on all when the data has changed, saying what in each stage: the
    batches would no longer be those of the run.
    """
    files = [files_digest(data.index, how, world) for data in stages]
    world.on_main(lambda: _compare_and_record(run, stages, files, accept))


def _compare_and_record(run: Path, stages: Sequence[StageData], files: list[Digest], accept: bool) -> None:
    path = run / DATA
    now = [
        {"folder": data.stage.folder, **data_digest(data.index), **found}
        for data, found in zip(stages, files, strict=True)
    ]
    if path.exists() and not accept:
        changes = _changes(_read(path), now)
        if changes:
            listing = "\n  ".join(changes)
            raise InputError(
                f"train.resume: the images of {run} are not those that it began with:\n  {listing}\nRestore them, "
                "or continue with these by --train.accept-data; other ids or sizes change the order from here on, too"
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
            found = [f"other {what}" for what in ("sizes", "captions") if old[what] != new[what]]
            changes += [f"{where}: {what}" for what in found or _changed_files(old, new)]
    return changes


def _changed_files(old: Digest, new: Digest) -> list[str]:
    """What has changed about the image files of a stage whose images are otherwise the same."""
    both = [
        what
        for what in ("pixels", "bytes", "times")
        if what in old and what in new and old[what] != new[what]
    ]
    if both == ["times"]:
        return [
            "the image files have the same sizes in bytes, but other modification times: they were copied, as to "
            "another disk, or changed; if their pixels are the same, --train.accept-data takes nothing from the run"
        ]
    texts = {"pixels": "other bytes in the image files", "bytes": "image files of other sizes in bytes"}
    return [texts[both[0]] + ": their pixels have changed"] if both else []


def _read(path: Path) -> list[Digest]:
    try:
        note = parsed_json(path.read_text(encoding="utf-8"))
        return [
            {key: entry[key] for key in ("images", "ids", "sizes", "captions")}
            | {key: entry[key] for key in ("bytes", "times", "pixels") if key in entry}
            for entry in note
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as the record of a run's images ({error}); delete it, and the run takes the "
            "present images as its own"
        ) from error


def _sha256_of(values: npt.NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
