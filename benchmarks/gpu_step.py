"""One optimizer step of full-size SDXL, ours beside diffusers': images per second, parts, memory, attention.

python -m benchmarks.gpu_step --out FILE [--device cuda] [--small] [--only TEXT] [--seconds N] [--attention]

Both sides train the same network size from random weights on the same cached latents and text states, with AdamW,
the gradient's norm clipped to 1 and an EMA of the weights on the device; a step takes about eight images, in
micro-batches as large as fit. Diffusers' side is the step of its SDXL trainer, rebuilt from the installed library's
parts (benchmarks/step_diffusers.py says what it does). Times are medians over steps, by CUDA events; the first
steps, which compile or capture, are reported apart. A captured step replays its micro-batches from a CUDA graph
(benchmarks/step_captured.py); after a capture that fails, a new process goes on. The file is written after every
case; rows that it holds already stay, each with the commit that it was measured on, and what was timed on this
commit is not timed again unless --only names it.
"""

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention_table import attention_rows
from benchmarks.kernel_classes import time_by_class
from benchmarks.step_inputs import Case, Marks
from benchmarks.step_ours import our_step, planned_bytes
from benchmarks.step_rows import RowLine, case_in, case_of, is_unplanned, rows_before, with_rows_before
from benchmarks.timing import environment, write

CARD_GIB = (
    78.0  # of a card sold as 80 GB, less its context; a larger one may use as much, to compare like with like
)
COMPILING = 60  # seconds that the blocks took to compile on an H200's host (results/gpu_runs/2)
TFLOP_PER_IMAGE_1024 = 20.23  # forward and backward of the UNet at 1024², see refimpl.train.budget


def their_step(case: Case, marks: Marks) -> Callable[[], None]:
    """The step of diffusers' trainer. Raises ImportError where diffusers is absent, which ends these cases alone."""
    from benchmarks.step_diffusers import diffusers_step

    return diffusers_step(case, marks)


MAKERS: dict[str, Callable[[Case, Marks], Callable[[], None]]] = {"diffusers": their_step, "ours": our_step}


def cases(small: bool) -> list[Case]:
    """What is timed, in the order of its worth."""
    square, tall = ((64, 64), (64, 128)) if small else ((1024, 1024), (832, 1216))
    bf16, tf32 = (2, 2) if small else (5, 3)  # images per micro-batch to begin with
    low = (
        "flash" if small else "cudnn"
    )  # in bfloat16, a choice that a run has to state: "auto" stays in float32
    many = 2 if small else 8
    ours, diffusers = partial(Case, "ours"), partial(Case, "diffusers")
    cheap, full = partial(ours, checkpointing="cheap"), partial(ours, checkpointing="full")
    their_full = partial(diffusers, checkpointing="full")
    rows = [
        cheap("bf16", *square, bf16 + 1),
        their_full("bf16", *square, many),
        cheap("tf32", *square, tf32, attention=low),
        cheap("bf16", *square, bf16 + 1, captured=True),
        cheap("tf32", *square, tf32, attention=low, captured=True),
        cheap("bf16", *square, bf16 + 1, compile="blocks", captured=True),
        their_full("tf32", *square, many),
        ours("bf16", *square, 1, images_per_step=1),
        ours("bf16", *square, 1, images_per_step=1, captured=True),
        diffusers("bf16", *square, 1, images_per_step=1),
        full("bf16", *square, many),
        full("bf16", *square, many, captured=True),
        cheap("bf16", *tall, bf16 + 1),
        their_full("bf16", *tall, many),
        full("tf32", *square, many, attention=low),
        cheap("tf32", *tall, tf32, attention=low),
        their_full("tf32", *tall, many),
        cheap("bf16", *square, bf16 + 1, compile="blocks"),
        cheap("tf32", *square, tf32),
        cheap("tf32", *square, tf32, attention=low, compile="blocks"),
        ours("bf16", *square, 1, compile="blocks", images_per_step=1),
        diffusers("bf16", *square, bf16),
        ours("bf16", *square, bf16),
        ours("bf16", *square, bf16, compile="blocks"),
        diffusers("tf32", *square, tf32),
        ours("tf32", *square, tf32),
        ours("tf32", *square, tf32, attention=low),
        ours("tf32", *square, tf32, compile="blocks", attention=low),
    ]
    return [replace(case, small=small) for case in rows]


def time_case(case: Case, device: str, repeats: int) -> dict[str, Any]:
    """Times one case at the largest batch that fits, from the case's batch downwards."""
    for batch in range(case.batch, 0, -1):
        row = _time_batch(case.at(batch), device, repeats)
        if row is not None:
            return row
    return {**asdict(case), "result": "out of memory at batch 1"}


def _time_batch(case: Case, device: str, repeats: int) -> dict[str, Any] | None:
    """One row, or None when it does not fit."""
    _free(device)
    marks = Marks(device)
    try:
        step = MAKERS[case.who](case, marks)
        started = time.perf_counter()
        step()
        marks.read()
        first = time.perf_counter() - started
        step()
        marks.read()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        samples = []
        for _ in range(repeats):
            step()
            samples.append(marks.read())
        peak = torch.cuda.max_memory_allocated() + marks.held_bytes if device == "cuda" else 0
        classes = time_by_class(step) if device == "cuda" and case.is_profiled else None
    except torch.OutOfMemoryError:
        return None
    finally:
        step = None
        _free(device)
    totals = [sum(sample.values()) for sample in samples]
    median = statistics.median(totals)
    images = case.batch * case.accumulate
    low, _, high = statistics.quantiles(totals, n=4)
    row: dict[str, Any] = {**asdict(case), "accumulate": case.accumulate, "images": images}
    row |= {"first_step_s": first, "step_ms": median, "quartile_low_ms": low, "quartile_high_ms": high}
    row["images_per_second"] = 1e3 * images / median
    row["parts_ms"] = {name: statistics.median(s[name] for s in samples) for name in samples[0]}
    if (case.width, case.height) == (1024, 1024):
        row["tflop_per_second"] = TFLOP_PER_IMAGE_1024 * row["images_per_second"]
    row |= {"peak_bytes": peak, "result": "timed"}
    if classes:
        row["share_by_kernel_class"] = classes
    return row


def _free(device: str) -> None:
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    """Times every case and writes the file after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the script")
    parser.add_argument("--attention", action="store_true", help="the attention table instead of steps")
    parser.add_argument("--only", default="", help="cases whose printed name contains this text")
    parser.add_argument("--seconds", type=float, default=3600, help="no case is begun after this time")
    parser.add_argument("--gib", type=float, default=CARD_GIB, help="memory that may be used; 0 for all")
    arguments = parser.parse_args()
    device, repeats = arguments.device, 3 if arguments.small else 5
    deadline = time.monotonic() + arguments.seconds
    if device == "cuda" and arguments.gib:
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, arguments.gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)
        )
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "memory_gib": arguments.gib,
        "attention": [],
        "rows": [],
    }
    before, attention = rows_before(arguments.out, device)
    if arguments.attention:
        for row in attention_rows(device, arguments.small):
            result["attention"].append(row)
            write("step_gpu", with_rows_before(result, before), arguments.out)
        return
    result["attention"] = attention
    write("step_gpu", with_rows_before(result, before), arguments.out)
    commit = environment()["commit"]
    timed, failed = (
        [case_of(row) for row in before if row["commit"] == commit and row["result"].startswith(ending)]
        for ending in ("timed", "failed")
    )
    chosen = [
        case
        for case in cases(arguments.small)
        if (arguments.only in case.name if arguments.only else case_of(asdict(case)) not in timed)
    ]
    # What failed comes again after all else; and after a capture that failed, so do all others, which may fail alike.
    risky = any(row.get("captured", False) for row in before if case_of(row) in failed)
    chosen.sort(key=lambda case: (case.captured and risky, case_of(asdict(case)) in failed))
    fitted: dict[tuple, int] = {}
    for number, case in enumerate(chosen, 1):
        if time.monotonic() > deadline - (0 if case.compile == "none" else COMPILING):
            print(f"{case.name}: not begun, the time was up")
            continue
        place = len(result["rows"])

        def note(row: dict[str, Any], place: int = place) -> None:
            result["rows"][place:] = [{**row, "commit": commit}]
            write("step_gpu", with_rows_before(result, before), arguments.out)

        size = (case.who, case.precision, case.width, case.images_per_step, case.checkpointing)
        # A compiled step fits where an eager one does; a captured one may need more.
        fits = fitted.get((*size, case.captured), fitted.get((*size, False), case.batch))
        case = case.at(min(case.batch, fits))
        if case.captured:
            note({**asdict(case), "result": "failed: the process ended in it"})
        try:
            row = time_case(case, device, repeats)
            fitted.setdefault((*size, case.captured), row["batch"])
        except Exception as error:  # a failed case stops none after it; the row says why
            row = {**asdict(case), "result": f"failed: {type(error).__name__}: {str(error)[:500]}"}
        note(row)
        print(RowLine(row), flush=True)
        if case.captured and row["result"].startswith("failed"):
            if not arguments.only and any(case_of(asdict(left)) not in failed for left in chosen[number:]):
                go_on_afresh(deadline - time.monotonic())
            break
    for row in (*before, *result["rows"]):  # after everything that is timed: a count takes the host seconds
        if is_unplanned(row, commit):
            row["planned_bytes"] = planned_bytes(case_in(row))
            write("step_gpu", with_rows_before(result, before), arguments.out)
    if len(result["rows"]) < len(chosen) or any(row["result"].startswith("failed") for row in result["rows"]):
        raise SystemExit(1)  # a second call goes on


def go_on_afresh(seconds: float) -> None:
    """Goes on with the cases that are left, in a new process in place of this one.

    A capture that failed may leave torch's allocator in any state (CUDAGraph::reset says so), and with it the memory
    and the times of every case after it.
    """
    arguments = [*sys.argv[1:], "--seconds", str(max(seconds, 0.0))]
    os.execv(sys.executable, [sys.executable, "-u", "-m", "benchmarks.gpu_step", *arguments])


if __name__ == "__main__":
    main()
