"""What an epoch's plan costs: batches of leftovers, dropped images, and ranks waiting for each other (N §4.1.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.data.bucket_sizes import Bucket
from refimpl.data.plan import Plan


@dataclass(frozen=True, eq=False)
class PlanReport:
    """An epoch in numbers.

    steps               number of steps, the same on every rank
    batches_per_bucket  [n_buckets], over all ranks; in mode global a global batch counts once
    dropped             rows left out of this epoch
    catch_all_share     share of batches that are made of leftovers from several buckets
    idle_share          share of all ranks' time spent waiting for the rank with the most pixels at each step. A
                        rank's time is taken as proportional to its pixels; 0 in mode global, where all ranks have
                        the same shape at each step
    """

    steps: int
    batches_per_bucket: npt.NDArray[np.int64]
    dropped: npt.NDArray[np.int64]
    catch_all_share: float
    idle_share: float


def report_plan(plan: Plan, buckets: Sequence[Bucket]) -> PlanReport:
    """Count an epoch's batches. buckets  (width, height) pairs, indexed by the plan's bucket indices"""
    ranks = range(plan.world_size if plan.mode == "paper" else 1)
    steps = np.stack([plan.bucket_steps(rank) for rank in ranks])  # [ranks that differ, steps]
    mixed = np.stack([plan.mixed_steps(rank) for rank in ranks])
    pixels = np.array([width * height for width, height in buckets], np.int64)[steps]
    return PlanReport(
        steps=len(plan),
        batches_per_bucket=np.bincount(steps.ravel(), minlength=len(buckets)),
        dropped=plan.dropped,
        catch_all_share=float(mixed.mean()),
        idle_share=float(1 - pixels.mean() / pixels.max(0).mean()),
    )
