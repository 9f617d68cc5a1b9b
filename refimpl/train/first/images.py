"""What a data set holds, as far as the settings of a run depend on it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.data.config import DataConfig
from refimpl.data.index.data_set import read_source

MOST_PROMPT = 200  # characters of a caption that is drawn from
PROMPTS = 4  # captions that are drawn from


@dataclass(frozen=True, eq=False)
class Images:
    """A data set's images."""

    widths: npt.NDArray[np.int64]
    """Widths, px."""
    heights: npt.NDArray[np.int64]
    """Heights, px."""
    uncaptioned: int
    """Images without a caption, or with an empty one."""
    prompts: tuple[str, ...]
    """The first few captions that differ, to draw from."""
    left_out: tuple[str, ...]
    """Files that can't be used, each with its reason; more than 1 % of them would have been an error."""

    def __len__(self) -> int:
        return len(self.widths)

    def share_of_area(self, area: int) -> float:
        """The share of the images that have at least so many pixels."""
        return float(np.mean(self.widths * self.heights >= area))


def look_at_images(source: str, allow_outside: bool = False) -> Images:
    """Reads a data set as training will: sizes from the files' headers, and captions, which may be missing.

    allow_outside  also read files outside the data set's folder
    Raises InputError as training would: for no images, too many that can't be used, or two of one name.
    """
    index = read_source(source, DataConfig().tag_classes, allow_missing=True, allow_outside=allow_outside)
    captions = list(index.captions)
    different = dict.fromkeys(text for text in captions if text and len(text) <= MOST_PROMPT)
    return Images(
        index.widths,
        index.heights,
        sum(not text for text in captions),
        tuple(different)[:PROMPTS],
        tuple(str(bad) for bad in index.quarantined),
    )
