"""One optimizer step of full-size SDXL, ours beside diffusers': images per second, parts, memory, attention.

python -m benchmarks.gpu_step --out FILE [--device cuda] [--small] [--only TEXT]

Both sides train the same network size from random weights on the same cached latents and text states, with AdamW,
the gradient's norm clipped to 1 and an EMA of the weights on the device; a step takes about eight images, in
micro-batches as large as fit. Diffusers' side is the step of its SDXL trainer, rebuilt from the installed library's
parts (benchmarks/step_diffusers.py says what it does). Times are medians over steps, by CUDA events; the first
steps, which compile, are reported apart. The file is written after every case; rows that it holds already, of other
cases, stay, each with the commit that it was measured on.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention_table import attention_rows
from benchmarks.kernel_classes import time_by_class
from benchmarks.step_diffusers import diffusers_step
from benchmarks.step_inputs import Case, Marks
from benchmarks.step_ours import our_step, planned_bytes
from benchmarks.timing import environment, write

CARD_GIB = (
    78.0  # of a card sold as 80 GB, less its context; a larger one may use as much, to compare like with like
)
TFLOP_PER_IMAGE_1024 = 20.23  # forward and backward of the UNet at 1024², see refimpl.train.budget
MAKERS: dict[str, Callable[[Case, Marks], Callable[[], None]]] = {
    "diffusers": diffusers_step,
    "ours": our_step,
}


def cases(small: bool) -> list[Case]:
    """What is timed, in the order of its worth."""
    square, tall = ((64, 64), (64, 128)) if small else ((1024, 1024), (832, 1216))
    bf16, tf32 = (2, 2) if small else (5, 3)  # images per micro-batch to begin with
    low = (
        "flash" if small else "cudnn"
    )  # in bfloat16, a choice that a run has to state: "auto" stays in float32
    many = 2 if small else 8
    rows = [
        Case("ours", "bf16", *square, bf16 + 1, checkpointing="cheap"),
        Case("diffusers", "bf16", *square, many, checkpointing="full"),
        Case("ours", "tf32", *square, tf32, checkpointing="cheap", attention=low),
        Case("diffusers", "tf32", *square, many, checkpointing="full"),
        Case("ours", "tf32", *square, many, checkpointing="full", attention=low),
        Case("ours", "bf16", *square, many, checkpointing="full"),
        Case("ours", "bf16", *square, bf16 + 1, checkpointing="cheap", compile="blocks"),
        Case("ours", "tf32", *square, tf32, checkpointing="cheap"),
        Case("ours", "tf32", *square, tf32, checkpointing="cheap", attention=low, compile="blocks"),
        Case("diffusers", "bf16", *square, bf16),
        Case("ours", "bf16", *square, bf16),
        Case("ours", "bf16", *square, bf16, compile="blocks"),
        Case("diffusers", "tf32", *square, tf32),
        Case("ours", "tf32", *square, tf32),
        Case("ours", "tf32", *square, tf32, attention=low),
        Case("ours", "tf32", *square, tf32, compile="blocks", attention=low),
        Case("diffusers", "bf16", *square, 1, images_per_step=1),
        Case("ours", "bf16", *square, 1, images_per_step=1),
        Case("ours", "bf16", *square, 1, compile="blocks", images_per_step=1),
    ]
    for precision, batch in (("bf16", bf16), ("tf32", tf32)):
        attention = "auto" if precision == "bf16" else low
        rows += [
            Case("diffusers", precision, *tall, batch),
            Case("ours", precision, *tall, batch, compile="blocks", attention=attention),
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
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
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


def _case_of(row: dict[str, Any]) -> Case:
    return Case(**{field.name: row[field.name] for field in fields(Case)})


def _with(result: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, Any]:
    """The result with the rows of an earlier file whose cases it does not hold."""
    names = [field.name for field in fields(Case) if field.name != "batch"]

    def case_of(row: dict[str, Any]) -> list[Any]:
        return [row.get(name, "auto") for name in names]

    new = [case_of(row) for row in result["rows"]]
    return {**result, "rows": [row for row in before if case_of(row) not in new] + result["rows"]}


def _free(device: str) -> None:
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Table:
    """The printed line of a row."""

    row: dict[str, Any]

    def __str__(self) -> str:
        row = self.row
        how = "" if row["checkpointing"] == "none" else f" {row['checkpointing']}"
        how += "" if row["attention"] == "auto" else f" {row['attention']}"
        name = f"{row['who']:<9} {row['precision']}{how} {row['width']}x{row['height']} B = {row['batch']}"
        if row["result"] != "timed":
            return f"{name} {row['compile']:<6}  {row['result']}"
        parts = " ".join(f"{part} {ms:.0f}" for part, ms in row["parts_ms"].items())
        return (
            f"{name} x {row['accumulate']} {row['compile']:<6}  {row['images_per_second']:6.2f} images/s, "
            f"{row['step_ms']:.0f} ms ({parts}), peak {row['peak_bytes'] / 2**30:.1f} GiB, "
            f"first step {row['first_step_s']:.0f} s"
        )


def main() -> None:
    """Times every case and writes the file after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the script")
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
    before: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    for row in before["rows"]:
        row.setdefault("commit", before["environment"]["commit"])
    fitted: dict[tuple, int] = {}
    for case in cases(arguments.small):
        if arguments.only not in case.name:
            continue
        if time.monotonic() > deadline:
            print(f"{case.name}: not begun, the time was up")
            continue
        size = (case.who, case.precision, case.width, case.images_per_step, case.checkpointing)
        case = case.at(
            min(case.batch, fitted.get(size, case.batch))
        )  # a compiled step fits where an eager one does
        try:
            row = time_case(case, device, repeats)
            fitted.setdefault(size, row["batch"])
        except Exception as error:  # a failed case stops none after it; the row says why
            row = {**asdict(case), "result": f"failed: {type(error).__name__}: {str(error)[:500]}"}
        result["rows"].append({**row, "commit": environment()["commit"]})
        write("step_gpu", _with(result, before["rows"]), arguments.out)
        print(_Table(row), flush=True)
    for row in result["rows"]:  # after everything that is timed: a count takes the host seconds
        if row["who"] == "ours" and row["result"] == "timed":
            row["planned_bytes"] = planned_bytes(_case_of(row))
    write("step_gpu", _with(result, before["rows"]), arguments.out)
    for row in attention_rows(device, arguments.small):
        result["attention"].append(row)
    write("step_gpu", _with(result, before["rows"]), arguments.out)
    if any(row["result"].startswith("failed") for row in result["rows"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
