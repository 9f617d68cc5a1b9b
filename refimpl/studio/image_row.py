"""One image of a browsed index, read from it when asked."""

from dataclasses import dataclass
from typing import Any

from refimpl.data.index.columns import Captions, Ids, Places, TagLists
from refimpl.errors import InputError
from refimpl.studio.browsed import Browsed


@dataclass(frozen=True, eq=False)
class Row:
    """One image of the index, read when asked."""

    browsed: Browsed
    row: int

    def __post_init__(self) -> None:
        if not 0 <= self.row < len(self.browsed.mapped):
            raise InputError(f"image {self.row}: the index has {len(self.browsed.mapped)}")

    @property
    def id(self) -> str:
        """Its id."""
        return Ids(self.browsed.mapped)[self.row]

    @property
    def caption(self) -> str:
        """Its caption."""
        return Captions(self.browsed.mapped)[self.row]

    @property
    def tags(self) -> dict[str, list[str]]:
        """Its tags by class."""
        return {name: list(tags) for name, tags in TagLists(self.browsed.mapped)[self.row].items()}

    @property
    def place(self) -> Any:
        """Where its pixels are, as `images.decode` takes it."""
        return Places(self.browsed.mapped)[self.row]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        arrays = self.browsed.mapped.arrays
        return int(arrays["width"][self.row]), int(arrays["height"][self.row])

    @property
    def bucket(self) -> tuple[int, int]:
        """Width and height of its bucket."""
        return self.browsed.buckets[int(self.browsed.bucket_of[self.row])]

    def has(self, flag: int) -> bool:
        """Whether it has one of FLAGS."""
        return bool(self.browsed.flags[self.row] & flag)
