"""Tag-based loss weights (N §4.3). N gives no formula; the one used here is not from a paper.

N keeps track of the counts "during training", and does not say how. A stage of training counts the tags of its whole
data set before its first step (`refimpl.run.stage`): weights have mean 1 over the data set, and an image has the same
one at every visit, on any number of ranks and in a run that is continued.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from refimpl.data.config import check_tag_weights
from refimpl.data.index.columns import TagLists
from refimpl.errors import InputError

TagsByClass = Mapping[str, Sequence[str]]

CHUNK = 1 << 15  # images weighed at once: some millions of tags


class TagCounts:
    """How often each tag occurs within its class, and the loss weight of an image that follows from it.

    The factor of one tag is (reference / count)^beta, where `count` is the number of images with that tag and
    `reference` its mean over the tags of the same class counted so far. An image's weight is the mean factor of
    its tags, clamped to [w_min, w_max]: below 1 for tags overly common in their class, above 1 for rare ones.

    beta   0 for equal weights, 1 to give every tag of a class the same sum of factors
    w_min, w_max   w_min ≤ 1 ≤ w_max, so that the weight 1 of an image without tags lies within them
    Raises InputError for values outside these ranges.
    """

    def __init__(self, beta: float = 0.5, w_min: float = 0.25, w_max: float = 4.0) -> None:
        check_tag_weights(beta, w_min, w_max)
        self.beta = beta
        self.w_min = w_min
        self.w_max = w_max
        self.counts: dict[str, Counter[str]] = {}
        self._totals: Counter[str] = Counter()  # of each class: the sum of its counts

    def update(self, tags_by_class: TagsByClass) -> None:
        """Count one image's tags; a tag written twice in a class counts once.

        Raises InputError when a class holds a bare str in place of a list of tags.
        """
        for tag_class, distinct in _distinct(tags_by_class):
            if distinct:
                self.counts.setdefault(tag_class, Counter()).update(distinct)
                self._totals[tag_class] += len(distinct)

    def add(self, tag_class: str, tag: str, images: int) -> None:
        """Count a tag that occurs in `images` images, one or more, at once."""
        self.counts.setdefault(tag_class, Counter())[tag] += images
        self._totals[tag_class] += images

    def factor(self, tag_class: str, tag: str) -> float:
        """Factor of one tag according to the counts so far; 1 for a class never counted."""
        counts = self.counts.get(tag_class)
        if counts is None:
            return 1.0
        reference = self._totals[tag_class] / len(counts)
        return (reference / max(counts[tag], 1)) ** self.beta

    def weight(self, tags_by_class: TagsByClass) -> float:
        """Loss weight of an image with these tags according to the counts so far, clamped but not normalised.

        A tag never counted is treated as counted once; tags of a class never counted have the factor 1. An
        image without tags has the weight 1. Raises InputError as `update` does.
        """
        factors = [self.factor(c, tag) for c, tags in _distinct(tags_by_class) for tag in tags]
        if not factors:
            return 1.0
        return min(max(math.fsum(factors) / len(factors), self.w_min), self.w_max)


def _distinct(tags_by_class: TagsByClass) -> list[tuple[str, set[str]]]:
    for tag_class, tags in tags_by_class.items():
        if isinstance(tags, str):
            raise InputError(f"tags of class {tag_class!r}: {tags!r} is one str; give a list of tags")
    return [(tag_class, set(tags)) for tag_class, tags in tags_by_class.items()]


def dataset_weights(tags: Sequence[TagsByClass], counts: TagCounts) -> npt.NDArray[np.float64]:
    """Loss weight of every image of a dataset, normalised to mean 1.

    tags     [N]  tags by class of each image; those of an index file are weighted by tag id, in vectorised chunks
    counts   of this dataset (`count_tags`) or of a larger one
    returns  [N]  float64. Clamping comes first, so the range is [w_min, w_max] divided by the mean clamped weight.
    """
    if isinstance(tags, TagLists):
        weights = _listed_weights(tags, counts)
    else:
        weights = np.array([counts.weight(image) for image in tags], np.float64)
    return weights * (weights.size / math.fsum(weights)) if weights.size else weights


def count_tags(tags: Sequence[TagsByClass], counts: TagCounts) -> TagCounts:
    """`counts` after every image of a dataset has been counted in it."""
    if isinstance(tags, TagLists):
        found = np.zeros(tags.distinct, np.int64)
        for _, ids in _chunks(tags):
            found += np.bincount(ids, minlength=tags.distinct)
        for (tag_class, tag), images in zip(tags.dictionary(), found.tolist(), strict=True):
            if images:
                counts.add(tag_class, tag, images)
        return counts
    for image in tags:
        counts.update(image)
    return counts


def _chunks(tags: TagLists) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Row (within its chunk) and id of every tag, repeats within an image removed, CHUNK images at a time."""
    for start in range(0, len(tags), CHUNK):
        lengths, ids = tags.numbers(start, min(start + CHUNK, len(tags)))
        keys = np.repeat(np.arange(len(lengths)), lengths) * tags.distinct + ids
        keys.sort()
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
        yield keys // max(tags.distinct, 1), keys % max(tags.distinct, 1)


def _listed_weights(tags: TagLists, counts: TagCounts) -> npt.NDArray[np.float64]:
    """`TagCounts.weight` of every image."""
    factors = np.array([counts.factor(*tag) for tag in tags.dictionary()])
    weights = np.ones(len(tags))
    for number, (rows, ids) in enumerate(_chunks(tags)):
        part = weights[number * CHUNK : (number + 1) * CHUNK]
        tagged = np.bincount(rows, minlength=len(part))
        total = np.bincount(rows, factors[ids], len(part))
        with_tags = tagged > 0
        part[with_tags] = (total[with_tags] / tagged[with_tags]).clip(counts.w_min, counts.w_max)
    return weights
