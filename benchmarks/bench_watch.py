"""What being looked at costs a run: its look for control.json in every step, and writing the rows of metrics.jsonl.

python -m benchmarks.bench_watch [--minutes N]        writes results/watch.json
Exits with 1 when the two take 0.5 % of a step or more.

The loop of `refimpl.train` itself trains the tiny preset's networks, from 64 × 64 px images in one bucket so that all
steps are alike. Blocks of `log_every` steps take turns: in one the loop looks and writes as always, in the other it
does neither, and which of a pair comes first alternates. The values of a row are computed in both, and timed apart.
Everything is CPU time, which other work on the machine lengthens less than the time of day.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from benchmarks.timing import summary, write
from refimpl.latents.vae import VAE
from refimpl.run.config import Config
from refimpl.run.presets import load_config
from refimpl.train.faults import Faults
from refimpl.train.log import RunLog
from refimpl.train.loop import train
from refimpl.train.setup.out_folder import run_folder
from refimpl.train.setup.prepare import prepare
from refimpl.train.setup.resumed import settled
from refimpl.train.watch.control_file import ask, taken
from tests.train import runs

GOAL = 0.005  # share of a step
IMAGES = 64
MOST_STEPS = 10**6  # it is stopped before
WARM_BLOCKS = 2  # which plan and allocate
ASKED = 1000  # control files written and taken


@dataclass
class Block:
    """CPU seconds of some steps, and those of them that went into looking and writing.

    steps     whole steps
    looks     each look for a control file
    written   each row, from its values to the file
    computed  each row's values and their writing, where it is written
    """

    is_watched: bool
    steps: list[float] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)

    def share(self) -> float:
        """Share of the steps' time that goes into looking and writing."""
        return (sum(self.looks) + sum(self.written)) / sum(self.steps)


def settings_of(root: Path) -> Config:
    """The tiny preset's networks, batch and threads, on a handful of drawn images and a random autoencoder."""
    tiny = load_config("tiny")
    torch.manual_seed(0)
    vae = VAE(tiny.vae)
    save_file(
        {name: value.contiguous() for name, value in vae.state_dict().items()},
        str(root / "autoencoder.safetensors"),
    )
    for number, folder in enumerate(("train", "heldout")):
        runs.write_images(root / folder, IMAGES, number)
    table = {
        "steps": MOST_STEPS, "validate_every": MOST_STEPS, "checkpoint_every": MOST_STEPS,
        "batch_size": tiny.train.batch_size, "threads": tiny.train.threads, "log_every": tiny.train.log_every,
    }  # fmt: skip
    one_bucket = {"max_area": 4096, "max_side": 64, "min_side": 64, "step": 64}
    networks = {"vae": asdict(tiny.vae), "unet": asdict(tiny.unet)}
    return runs.config(root, root / "run", buckets=one_bucket, train=table, **networks)


@contextmanager
def measured(log_every: int) -> Iterator[list[Block]]:
    """Blocks of steps as a loop takes them; one of each two neither looks nor writes."""
    blocks: list[Block] = []
    begun = 0.0
    begin, log_step, log_row = Faults.begin, RunLog.step, RunLog.row

    def begins(faults: Faults, step: int, images: Sequence[str]) -> None:
        nonlocal begun
        now = time.process_time()
        if blocks:
            blocks[-1].steps.append(now - begun)
        if (step - 1) % log_every == 0:
            blocks.append(Block(is_watched=(step - 1) // log_every % 4 in (0, 3)))
        begin(faults, step, images)
        begun = time.process_time()

    def looks(path: Path) -> frozenset[str]:
        return clocked(blocks[-1].looks, lambda: taken(path)) if blocks[-1].is_watched else frozenset()

    def logs(log: RunLog, done: int, *others: Any) -> None:
        into = [] if done % log_every else blocks[-1].computed
        clocked(into, lambda: log_step(log, done, *others))

    def writes(log: RunLog, step: int, **values: Any) -> None:
        if not blocks:  # before the first step
            log_row(log, step, **values)
        elif blocks[-1].is_watched:
            clocked(blocks[-1].written, lambda: log_row(log, step, **values))

    with (
        patch.object(Faults, "begin", begins),
        patch("refimpl.train.faults.taken", looks),
        patch.object(RunLog, "step", logs),
        patch.object(RunLog, "row", writes),
    ):
        yield blocks


def clocked(into: list[float], call: Callable[[], Any]) -> Any:
    """Calls a function and notes this thread's CPU seconds."""
    started = time.thread_time()
    result = call()
    into.append(time.thread_time() - started)
    return result


def compared(blocks: Sequence[Block]) -> dict[str, Any]:
    """What looking and writing take: by their own clocks, and by blocks with and without them.

    blocks  an even number; each two are a pair, one of them watched
    """
    pairs = [
        sorted(pair, key=lambda block: block.is_watched)
        for pair in zip(blocks[::2], blocks[1::2], strict=True)
    ]
    watched = [block for block in blocks if block.is_watched]
    slowed = [sum(with_it.steps) / sum(without.steps) - 1 for without, with_it in pairs]
    return {
        "step": summary([seconds for block in blocks if not block.is_watched for seconds in block.steps]),
        "look": summary([seconds for block in watched for seconds in block.looks]),
        "row, written": summary([seconds for block in watched for seconds in block.written]),
        "row, computed and written": summary([seconds for block in watched for seconds in block.computed]),
        "share of a step": spread([block.share() for block in watched]),
        "slowed, by pairs": spread(slowed) | {"standard_error": standard_error(slowed)},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"mean": statistics.mean(values), "median": middle, "quartile_low": low, "quartile_high": high}


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values."""
    return statistics.stdev(values) / len(values) ** 0.5


def taking(folder: Path) -> dict[str, float]:
    """CPU time of a look that finds a file, reads it and takes it away."""
    seconds: list[float] = []
    for _ in range(ASKED):
        ask(folder / "control.json", "sample")
        assert clocked(seconds, lambda: taken(folder / "control.json")) == {"sample"}
    return summary(seconds)


def measure(minutes: float) -> dict[str, Any]:
    """The comparison over a run of so many minutes, without its first blocks and the one that it is stopped in."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settled(settings_of(Path(folder)), runs.ALONE)
        run = run_folder(settings, "watch", runs.ALONE)
        prepared = prepare(settings, run, runs.ALONE)
        ends = time.monotonic() + 60 * minutes
        with measured(settings.train.log_every) as blocks:
            train(settings, run, prepared, runs.ALONE, lambda: time.monotonic() > ends)
        whole = [block for block in blocks if len(block.steps) == settings.train.log_every]
        rows = [row["step"] for row in runs.rows(run) if "learning_rate" in row]
        assert len(rows) - sum(block.is_watched for block in whole) in (
            0,
            1,
        )  # of the block that it is stopped in
        timed = whole[WARM_BLOCKS : len(whole) // 2 * 2]
        found = compared(timed) | {"look that takes a file": taking(Path(folder))}
    steps = sum(len(block.steps) for block in timed)
    return {"steps": steps, "log_every": settings.train.log_every, "pairs": len(timed) // 2, **found}


def main() -> None:
    """Assert, time, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="how long the run takes")
    result = measure(parser.parse_args().minutes)
    path = write("watch", result)
    share, slowed = result["share of a step"], result["slowed, by pairs"]
    print(
        f"looking and writing: {share['mean']:.4%} of {result['step']['median_ms']:.1f} ms of CPU a step; by "
        f"{result['pairs']} pairs {slowed['mean']:+.2%} ± {slowed['standard_error']:.2%}; wrote {path}"
    )
    if share["mean"] >= GOAL:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
