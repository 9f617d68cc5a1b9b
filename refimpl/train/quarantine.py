"""Images that turn out bad during a run: each is named and replaced, and too many stop the run (N §4.1.3)."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from refimpl.data.images.decode import BadImage
from refimpl.data.index.data_set import MAX_BAD_SHARE
from refimpl.errors import InputError
from refimpl.run.shared_work import gathered
from refimpl.run.world import World
from refimpl.tables import parsed_json

FILE = "quarantine.jsonl"


class Quarantine:
    """The bad images that any rank has met, which rank 0 lists in `run`/quarantine.jsonl, one JSON object each.

    A rank notes what it meets, and tells the others when all ranks have agreed to listen: see refimpl.train.faults.
    Images listed by earlier processes are not listed again, and count only if met again: they may have been repaired.
    """

    def __init__(self, run: Path, world: World) -> None:
        self._path = run / FILE
        self._world = world
        self._met: set[str] = set()  # by any rank, as far as shared
        self._new: dict[str, BadImage] = {}  # by this rank, not yet shared
        self._images = 0  # in the data set
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
        self._noted = _noted(text)
        self._lead = (
            "" if text.endswith("\n") or not text else "\n"
        )  # ends a line that a kill or a full disk cut short

    def add(self, bad: Sequence[BadImage], images: int) -> None:
        """Notes the bad images that no rank has told of yet.

        images  number of images in the data set
        """
        self._images = images
        for image in bad:
            name = str(image.path)
            if name in self._met or name in self._new:
                continue
            self._new[name] = image
            tqdm.write(f"replaced by another image from its bucket: {image}")

    def has_news(self) -> bool:
        """Whether this rank has met bad images that it has not shared."""
        return bool(self._new)

    def share(self) -> None:
        """Gives every rank what each of them has met; all ranks must call it.

        Raises InputError, on all ranks, when the images met by all together are more than 1 % of the data set.
        """
        parts = gathered(self._world, (list(self._new.values()), self._images))
        self._new = {}
        new = {
            str(image.path): image for bad, _ in parts for image in bad if str(image.path) not in self._met
        }
        self._met |= set(new)
        if self._world.is_main:
            for image in new.values():
                self._note(image)
        images = max(count for _, count in parts)
        if new and len(self._met) > MAX_BAD_SHARE * images:
            raise InputError(
                f"{len(self._met)} bad images, more than {MAX_BAD_SHARE:.0%} of the {images}; they are listed in "
                f"{self._path}, the last is {[*new.values()][-1]}. Repair or remove them"
            )

    def _note(self, image: BadImage) -> None:
        name = str(image.path)
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
            found.add(parsed_json(line)["path"])
    return found
