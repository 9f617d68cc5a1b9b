"""Captions made of tags: parsing, shuffling and tag dropout (N §4.2, §4.3)."""

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it brings torch, which the processes that index would load for nothing
    from refimpl.data.crop import IntegerSource

DEFAULT_TAG_CLASSES = ("general", "character", "artist", "copyright", "meta", "rating")

DROPOUT_STEPS = 1 << 24  # a probability is one of so many equal draws
Tags = dict[str, tuple[str, ...]]  # by class


def parse_caption(text: str, tag_classes: Collection[str] = DEFAULT_TAG_CLASSES) -> tuple[str, Tags]:
    """Caption and tags from a sidecar's text: tags separated by commas or line breaks.

    A tag written `class:name`, with its class among `tag_classes`, belongs to that class and loses the prefix; any
    other tag is of class "general", even if it contains a colon. Leading and trailing whitespace is stripped, runs
    of whitespace become one space, and empty tags are removed.
    returns  the caption, its tags joined by ", ", and the tags by class, both in the order written
    """
    names: list[str] = []
    tags: dict[str, list[str]] = {}
    for written in re.split(r"[,\r\n]", text):
        name = " ".join(written.split())
        prefix, colon, rest = (part.strip() for part in name.partition(":"))
        tag_class = "general"
        if colon and rest and prefix in tag_classes:
            tag_class, name = prefix, rest
        if name:
            names.append(name)
            tags.setdefault(tag_class, []).append(name)
    return ", ".join(names), {tag_class: tuple(found) for tag_class, found in tags.items()}


def shuffle_tags(caption: str, rng: "IntegerSource", keep_first: int = 0) -> str:
    """The caption with its tags in random order, the first `keep_first` left in place (Fisher–Yates shuffle).

    rng  drawn from once for each of the shuffled tags but one
    """
    tags = caption.split(", ")
    for last in range(len(tags) - 1, keep_first, -1):
        other = int(rng.integers(keep_first, last + 1))
        tags[last], tags[other] = tags[other], tags[last]
    return ", ".join(tags)


def drop_tags(
    caption: str, tags: Tags, rates: Mapping[str, float], rng: "IntegerSource", keep_first: int = 0
) -> str:
    """The caption without some of its tags, each dropped independently with the probability of its class.

    tags   by class; a tag of the caption that is in several classes belongs to the first
    rates  class → probability; tags of other classes are always kept
    rng    drawn from once for every tag of these classes, except among the first `keep_first` of the caption
    """
    classes = {name: tag_class for tag_class, names in reversed(tags.items()) for name in names}
    kept = []
    for place, name in enumerate(caption.split(", ")):
        rate = rates.get(classes.get(name, ""))
        dropped = (
            place >= keep_first and rate is not None and rng.integers(0, DROPOUT_STEPS) < rate * DROPOUT_STEPS
        )
        if not dropped:
            kept.append(name)
    return ", ".join(kept)
