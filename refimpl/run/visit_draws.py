"""The loader's random choices for one visit of an image: functions of (seed, id, visit) alone."""

from dataclasses import dataclass

from refimpl.diffusion.philox_words import KeyedIntegers, Purpose, draw_key_of, sample_id


@dataclass(frozen=True)
class VisitDraws:
    """Crop and flip of a visit, keyed by Philox; the same in any worker, batch and world size."""

    seed: int
    flip: bool

    def crop_source(self, name: str, visit: int) -> KeyedIntegers:
        """The source from which `cover_and_crop` draws the crop."""
        return self._source(name, visit, Purpose.CROP)

    def tag_source(self, name: str, visit: int) -> KeyedIntegers:
        """The source from which `shuffle_tags` draws the order of the caption's tags."""
        return self._source(name, visit, Purpose.TAG_SHUFFLE)

    def tag_dropout_source(self, name: str, visit: int) -> KeyedIntegers:
        """The source from which `drop_tags` draws the tags that this visit omits."""
        return self._source(name, visit, Purpose.TAG_DROPOUT)

    def is_flipped(self, name: str, visit: int) -> bool:
        """Whether this visit shows the mirrored image."""
        return self.flip and self._source(name, visit, Purpose.FLIP).integers(0, 2) == 1

    def _source(self, name: str, visit: int, purpose: Purpose) -> KeyedIntegers:
        return KeyedIntegers(draw_key_of(self.seed, sample_id(name), visit, purpose))


class CentreDraws:
    """Draws without randomness, for measurements: centre crops, never mirrored."""

    def crop_source(self, name: str, visit: int) -> "CentreDraws":
        """Returns itself; see `integers`."""
        return self

    def integers(self, low: int, high: int) -> int:
        """The middle of [low, high)."""
        return low + (high - low - 1) // 2

    def is_flipped(self, name: str, visit: int) -> bool:
        """Returns False: no visit is mirrored."""
        return False
