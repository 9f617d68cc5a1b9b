"""Aesthetic scores of images, on which SDXL's refiner is conditioned (S §2.5), from tags written `score:6.5`."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from refimpl.data.index.data_set import Index
from refimpl.errors import InputError


def take_scores(index: Index, score_class: str, default: float) -> tuple[Index, npt.NDArray[np.float32]]:
    """Take the scores out of the captions: they are numbers for the network, not words for the text encoders.

    index        read with `score_class` among its tag classes
    default      score of images without one
    returns      the data set without the tags of that class, and [N] float32 scores
    Raises InputError for a score that is not a number of magnitude below 1e30, and for an image with more than one.
    """
    scores = np.full(len(index), default, np.float32)
    captions, tags = list(index.captions), list(index.tags)
    for row, name in enumerate(index.ids):
        written = tags[row].get(score_class, ())
        if not written:
            continue
        scores[row] = _score(written, name, score_class)
        tags[row] = {other: found for other, found in tags[row].items() if other != score_class}
        left = captions[row].split(", ")
        left.remove(written[0])
        captions[row] = ", ".join(left)
    return replace(index, captions=captions, tags=tags), scores


def _score(written: tuple[str, ...], name: str, score_class: str) -> float:
    score, *others = written
    if others:
        raise InputError(
            f"image {name!r} has {len(written)} tags of class {score_class!r} ({', '.join(written)}); keep one"
        )
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e30:  # float32 still holds it; NaN is not below
        raise InputError(
            f"image {name!r}: the aesthetic score {score_class}:{score} is not a number below 1e30 in magnitude; "
            f"write one such as {score_class}:6.5, or set another data.score_class"
        )
    return value
