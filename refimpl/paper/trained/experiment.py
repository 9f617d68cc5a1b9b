"""An experiment on small networks: a value of each measure by seed, their means, and their intervals over seeds.

What the report predicts is written down with the experiment, before anything is measured: the names of the effects
that must be positive. All arms of a seed share their pictures, initial weights, order and noise.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from refimpl.data.loading.orphans import end_with_parent
from refimpl.errors import InputError, LostProcess
from refimpl.paper.computed.quantity import Quantity, bootstrapped

SEEDS = 5
AS_PREDICTED = "as predicted"
Found = dict[str, dict[str, float]]  # measure of the claims table → name of a number → its value


@dataclass(frozen=True)
class TrainedExperiment:
    """One experiment, which `of_seed` runs for one seed; weights that it finds in the folder are not trained again.

    of_seed    a function of the seed and the folder with the weights; of module level, since processes import it
    predicted  names of the effects, each positive by the report
    seconds    CPU time that one seed may take, with no weights at hand
    """

    of_seed: Callable[[int, Path], Found]
    predicted: tuple[str, ...]
    seconds: float


def verdict(effect: Quantity) -> str:
    """Whether an effect that must be positive is: by its interval, "as predicted", "the opposite" or "unresolved"."""
    if effect.low > 0:
        return AS_PREDICTED
    return "the opposite" if effect.high < 0 else "unresolved"


def over_seeds(found: list[Found]) -> dict[str, list[Quantity]]:
    """The mean of each number over the seeds, with its bootstrap interval."""
    return {
        measure: [
            bootstrapped(name, np.array([each[measure][name] for each in found]), lambda x: float(x.mean()))
            for name in names
        ]
        for measure, names in found[0].items()
    }


def measured_experiments(
    experiments: Mapping[str, TrainedExperiment], folder: Path, jobs: int
) -> Iterator[tuple[str, dict[str, list[Quantity]], float]]:
    """Runs the experiments: (name, measures, CPU time of all its seeds in seconds), one after another.

    jobs  processes, of one thread each; 1 runs them here. The numbers are the same for any
    Raises InputError when `jobs` is below 1, and LostProcess when a process dies.
    """
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: give 1 or more processes")
    if jobs == 1:
        for name, experiment in experiments.items():
            yield name, *_together([_one_seed(experiment.of_seed, seed, folder) for seed in range(SEEDS)])
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent) as pool:
        futures: dict[str, list[Future[tuple[Found, float]]]] = {
            name: [pool.submit(_one_seed, experiment.of_seed, seed, folder) for seed in range(SEEDS)]
            for name, experiment in experiments.items()
        }
        try:
            for name, each in futures.items():
                yield name, *_together([future.result() for future in each])
        except BrokenProcessPool as error:
            raise LostProcess(
                "a process that trained a network died, as from lack of memory; finished networks are kept. Run it "
                "again, with fewer --jobs"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _together(found: list[tuple[Found, float]]) -> tuple[dict[str, list[Quantity]], float]:
    return over_seeds([each for each, _ in found]), sum(seconds for _, seconds in found)


def _one_seed(of_seed: Callable[[int, Path], Found], seed: int, folder: Path) -> tuple[Found, float]:
    """One seed's values and the CPU seconds that they took, by one thread: more would sum in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    try:
        return of_seed(seed, folder), time.process_time() - start
    finally:
        torch.set_num_threads(threads)
