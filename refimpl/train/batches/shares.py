"""How the micro-batches of an optimizer step are dealt to the ranks, whose number may change (N §4).

A global batch is cut into M micro-batches, j = 0 … M − 1, and rank r computes those with j ≡ r (mod ranks), in their
order. So 1, 3 or 256 ranks train on the same images with the same draws. Where the ranks don't divide M, some have a
micro-batch less than the others; they run their last one again with weight 0, since collectives need all of them.
"""

import numpy as np
import numpy.typing as npt

from refimpl.errors import InputError
from refimpl.run.config import TrainConfig


def micro_batches(training: TrainConfig, ranks: int) -> int:
    """M, the micro-batches of an optimizer step on all ranks: `train.micro_batches`, or what `accumulate` makes it.

    Raises InputError when the ranks are more than these.
    """
    count = training.micro_batches or ranks * training.accumulate
    if count < ranks:
        raise InputError(
            f"train.micro_batches {count} are fewer than the {ranks} ranks, some of which would have nothing to do; "
            f"start at most {count} processes, or raise train.micro_batches and lower train.batch_size"
        )
    return count


def check_ranks_of_paper_plan(training: TrainConfig, ranks: int) -> None:
    """Raises InputError where `train.micro_batches` contradicts N's plan, in which every rank has its own buckets."""
    if micro_batches(training, ranks) != ranks * training.accumulate:
        raise InputError(
            f"data.plan 'paper' plans every rank by itself, so train.micro_batches {training.micro_batches} would "
            f"have to be {ranks} ranks × train.accumulate {training.accumulate} = {ranks * training.accumulate}; "
            "use data.plan 'global', whose batches any number of ranks can share, or as many ranks as the run began "
            "with"
        )


def share_of(
    items: npt.NDArray[np.int64], count: int, rank: int, ranks: int
) -> tuple[list[npt.NDArray[np.int64]], int]:
    """A rank's micro-batches of a global batch, and how many repeats follow them.

    items  [images] of the global batch, a multiple of `count`, the number of micro-batches of all ranks
    """
    size = len(items) // count
    mine = [items[j * size : (j + 1) * size] for j in range(rank, count, ranks)]
    return mine, rounds(count, ranks) - len(mine)


def rounds(count: int, ranks: int) -> int:
    """Forward passes of every rank in a step of `count` micro-batches, repeats included."""
    return -(-count // ranks)


def real_ranks(count: int, ranks: int, k: int) -> int:
    """On how many ranks, which are the first, the k-th forward pass of a step is no repeat."""
    return min(ranks, count - k * ranks)
