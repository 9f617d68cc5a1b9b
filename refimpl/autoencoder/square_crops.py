"""Endless batches of square crops, reshuffled every epoch, on which autoencoders are trained (S §2.4)."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from refimpl.data.index.data_set import Index
from refimpl.data.loading.loader import Batch, ImageCache, load_batches
from refimpl.data.plan import plan_epoch
from refimpl.run.visit_draws import VisitDraws


def square_crops(
    index: Index,
    size: int,
    batch_size: int,
    seed: int,
    start: int = 0,
    cache: ImageCache | None = None,
    substitutes: Callable[[int], Sequence[int]] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Batches from step `start` on; order and crops are functions of (seed, step) and the images' ids.

    size        side of the crops, px
    batch_size  images per batch
    cache       keeps the decoded images of a small data set
    substitutes  row → rows to try in place of an image that cannot be read, as for `load_batches`
    share       this rank and the number of ranks: of each batch, only its images are loaded
    Raises InputError when there are fewer images than one batch, and BadImage for one that cannot be read.
    """
    epoch_steps = len(index) // batch_size or 1  # plan_epoch refuses fewer images than one batch
    epoch, cursor = divmod(start, epoch_steps)
    while True:
        plan = plan_epoch(np.zeros(len(index), np.int64), batch_size, seed, epoch)
        rank, ranks = share
        batches = [((size, size), items[rank::ranks]) for _, items in plan.batches(start=cursor)]
        draws = VisitDraws(seed, flip=False)
        yield from load_batches(index, batches, epoch, draws, cache=cache, substitutes=substitutes)
        epoch, cursor = epoch + 1, 0
