"""The first epoch of a data set as each plan mode would plan it, before any training (N §4.1.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from refimpl.data.bucket_sizes import Bucket, Metric
from refimpl.data.buckets import assign_and_prune
from refimpl.data.config import Mode
from refimpl.data.index.data_set import index_of
from refimpl.data.index.index_file import Table
from refimpl.data.plan import plan_epoch
from refimpl.data.survey.plan_report import PlanReport, report_plan


@dataclass(frozen=True, eq=False)
class PlannedEpoch:
    """Epoch 0 in numbers.

    dropped  ids of the first few images that it leaves out, in the index's order
    """

    mode: Mode
    report: PlanReport
    dropped: list[str]


def survey_plans(
    table: Table,
    buckets: Sequence[Bucket],
    batch_size: int | npt.NDArray[np.int64],
    world_size: int,
    metric: Metric = "log",
    max_log_error: float = math.inf,
    seed: int = 0,
    listed: int = 5,
) -> list[PlannedEpoch]:
    """The plan of epoch 0 in each mode, for the images that are not pruned.

    batch_size  images per rank and step; or [n_buckets] the number for each bucket, which mode paper does not know
    listed      dropped images that are named
    Raises InputError when there are fewer images than one global batch, and as `buckets.assign_and_prune` does.
    """
    index = index_of(table)
    assigned = assign_and_prune(index.widths, index.heights, buckets, metric, max_log_error)
    kept = np.flatnonzero(~assigned.pruned)
    aspects = index.widths[kept] / index.heights[kept]
    bucket_aspects = np.array([width / height for width, height in buckets])
    planned = []
    modes: tuple[Mode, ...] = get_args(Mode) if np.ptp(batch_size) == 0 else ("global",)
    for mode in modes:
        plan = plan_epoch(
            assigned.index[kept], batch_size, seed, 0, world_size, mode, aspects, bucket_aspects
        )
        names = [str(index.ids[row]) for row in kept[plan.dropped[:listed]].tolist()]
        planned.append(PlannedEpoch(mode, report_plan(plan, buckets), names))
    return planned
