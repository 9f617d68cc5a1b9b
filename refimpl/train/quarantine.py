"""Images that turn out bad while a run reads them: named, stood in for, and a stop when they are many (N §4.1.3)."""

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from refimpl.data.images import BadImage
from refimpl.data.index import MAX_BAD_SHARE
from refimpl.errors import InputError
from refimpl.train.distributed import World


class Quarantine:
    """The bad images that this rank has met, in `run`/quarantine-rank<r>.jsonl, one JSON object each.

    images  of the data set. A rank reads 1 / world of them in an epoch, and stops at more than 1 % bad of those
    """

    def __init__(self, run: Path, world: World) -> None:
        self._path = run / f"quarantine-rank{world.rank}.jsonl"
        self._world = world
        self._known: set[str] = set()
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                self._known.add(json.loads(line)["path"])

    def add(self, bad: Sequence[BadImage], images: int) -> None:
        """Notes those not yet known.

        Raises InputError when they are more than 1 % of this rank's share of the data set's `images`.
        """
        for image in bad:
            name = str(image.path)
            if name in self._known:
                continue
            self._known.add(name)
            tqdm.write(f"another image of its bucket stands for {image}")
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"path": name, "kind": image.kind, "reason": image.reason}) + "\n")
            except OSError as error:
                raise InputError(f"could not write {self._path}: {error.strerror}; free space") from error
            share = images / self._world.size
            if len(self._known) > MAX_BAD_SHARE * share:
                raise InputError(
                    f"rank {self._world.rank}: {len(self._known)} bad images, more than {MAX_BAD_SHARE:.0%} of its "
                    f"{share:.0f}; they are listed in {self._path}, the last one is {image}. Repair or remove them"
                )
