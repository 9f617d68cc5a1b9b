"""Images that turn out bad during a run: each is named and replaced, and too many stop the run (N §4.1.3)."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from refimpl.data.images.decode import BadImage
from refimpl.data.index.data_set import MAX_BAD_SHARE
from refimpl.errors import InputError
from refimpl.run.world import World


class Quarantine:
    """The bad images that this rank has met, in `run`/quarantine-rank<r>.jsonl, one JSON object each.

    A rank reads 1 / world of the data set's images in an epoch, and stops when more than 1 % of those are bad.
    Images noted by earlier processes are not written again, and count only if met again: they may have been repaired.
    """

    def __init__(self, run: Path, world: World) -> None:
        self._path = run / f"quarantine-rank{world.rank}.jsonl"
        self._world = world
        self._met: set[str] = set()
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
        self._noted = _noted(text)
        self._lead = (
            "" if text.endswith("\n") or not text else "\n"
        )  # ends a line that a kill or a full disk cut short

    def add(self, bad: Sequence[BadImage], images: int) -> None:
        """Records the bad images that are not on record yet.

        images  number of images in the data set
        Raises InputError when those that this process has met are more than 1 % of this rank's share of `images`.
        """
        for image in bad:
            name = str(image.path)
            if name in self._met:
                continue
            self._met.add(name)
            tqdm.write(f"replaced by another image from its bucket: {image}")
            self._note(name, image)
            share = images / self._world.size
            if len(self._met) > MAX_BAD_SHARE * share:
                raise InputError(
                    f"rank {self._world.rank}: {len(self._met)} bad images, more than {MAX_BAD_SHARE:.0%} of its "
                    f"{share:.0f}; they are listed in {self._path}, the last is {image}. Repair or remove them"
                )

    def _note(self, name: str, image: BadImage) -> None:
        if name in self._noted:
            return
        line = json.dumps({"path": name, "kind": image.kind, "reason": image.reason})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{self._lead}{line}\n")
        except OSError as error:
            raise InputError(f"could not write {self._path}: {error.strerror}; free space") from error
        self._noted.add(name)
        self._lead = ""


def _noted(text: str) -> set[str]:
    """Paths in the file's whole lines."""
    found = set()
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.add(json.loads(line)["path"])
    return found
