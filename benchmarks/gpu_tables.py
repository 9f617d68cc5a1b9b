"""The part of benchmarks/README.md that says what a GPU has shown, from the JSON of its stages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.step_tables import step_section, table
from benchmarks.timing import RESULTS

RUNS = RESULTS / "gpu_runs"  # a folder for each call of benchmarks.gpu
Run = Mapping[str, dict[str, Any]]  # file's stem → its content
SHOWN_BATCHES = (512, 64, 8)  # of the operations; the others are in the JSON
# Fields of all tables that say what a row is.
CASE = ("who", "precision", "width", "height", "compile", "attention", "checkpointing", "images_per_step",
        "captured", "memory_gib", "operation", "shape", "latent", "batch", "dtype", "choice", "heads", "tokens",
        "keys")  # fmt: skip
BEFORE = {"captured": False}  # what rows mean that are older than a field
CLAIMED_BYTES = 64e6  # smaller tensors can sit in the L2

# (operation, dtype, share of the copy bandwidth) to reach at 64 MB or more
BANDWIDTH_GOALS = (
    ("add_noise", "float32", 0.90),
    ("v_loss", "float32", 0.90),
    ("add_keyed_noise", "float32", 0.75),
)


def gpu_runs() -> list[Run]:
    """What every run has written, the oldest first."""
    folders = sorted(path for path in RUNS.glob("*") if path.is_dir())
    return [{path.stem: json.loads(path.read_text()) for path in sorted(f.glob("*.json"))} for f in folders]


def gpu_section(runs: Sequence[Run]) -> list[str]:
    """The lines of the section: the newest result of each kind; where there is none, it says how to get one."""
    lines = ["", "## On a GPU", ""]
    if not runs:
        return [
            *lines,
            "Not measured: no GPU has been available. `python -m benchmarks.gpu --out DIR` builds, tests, checks and "
            "times the CUDA kernels and a full-size training step.",
        ]
    lines += _stages(runs)
    parts = {
        "step_gpu": step_section,
        "update_gpu": _updates,
        "ops_gpu": _operations,
        "training_gpu": _training,
    }
    for name, part in parts.items():
        results = [run[name] for run in runs if name in run]
        if results:
            lines += ["", *part(_newest(results))]
    return lines


def _newest(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The newest result, and of its tables the newest row of each case."""
    newest: dict[str, Any] = {}
    for result in results:
        memory, commit = result.get("memory_gib", "all"), result["environment"]["commit"]
        for key, value in result.items():
            if isinstance(value, list):
                value = [{"memory_gib": memory, "commit": commit, **row} for row in value]
                kept = {_case(row): row for row in [*newest.get(key, []), *value]}
                newest[key] = list(kept.values())
            else:
                newest[key] = value
    return newest


def _case(row: dict[str, Any]) -> str:
    """What tells a row from the others: what was set, not what was measured."""
    return json.dumps([row.get(name, BEFORE.get(name, "auto")) for name in CASE])


def _stages(runs: Sequence[Run]) -> list[str]:
    rows = [
        [
            str(number),
            run["gpu"]["environment"]["commit"],
            name,
            stage["result"],
            f"{stage.get('seconds', 0)} s",
        ]
        for number, run in enumerate(runs, 1)
        if "gpu" in run
        for name, stage in run["gpu"]["stages"].items()
    ]
    header = ["run", "commit", "stage", "result", "took"]
    return ["How the stages of `benchmarks.gpu` ended (see `results/gpu_runs`):", "", *table(header, rows)]


def _updates(result: dict[str, Any]) -> list[str]:
    cells = [
        [
            name,
            f"{row['median_ms']:.1f} ({row['quartile_low_ms']:.1f}–{row['quartile_high_ms']:.1f})",
            str(row["counted_bytes_per_parameter"]),
            f"{row['share_of_copy_bandwidth']:.2f}",
            str(row.get("launches", "")),
            f"{row['kernel_is_faster_by']:.2f}",
        ]
        for name, row in result["rows"].items()
    ]
    header = ["how", "ms", "bytes per parameter", "of the copy bandwidth", "launches", "÷ kernel"]
    return [
        f"### Clip, AdamW and EMA over SDXL's {result['parameters']:,} parameters",
        "",
        *table(header, cells),
    ]


def _operations(result: dict[str, Any]) -> list[str]:
    network = [
        [
            row["operation"],
            row["dtype"],
            "×".join(map(str, row["shape"])),
            kind,
            f"{row[f'kernel_{kind}']['median_us']:.0f}",
            f"{row[f'share_{kind}']:.2f}",
            f"{row[f'eager_{kind}']['median_us'] / row[f'kernel_{kind}']['median_us']:.2f}",
            f"{row[f'compile_{kind}']['median_us'] / row[f'kernel_{kind}']['median_us']:.2f}",
        ]
        for row in result["network_rows"]
        for kind in ("value", "both")
    ]
    rows = []
    for row in result["rows"]:
        if row["batch"] not in SHOWN_BATCHES or row["dtype"] == "float16":
            continue
        cold = row["cold"]["median_us"]
        compiled = f"{row['compile']['median_us'] / cold:.2f}" if "compile" in row else ""
        alone = f"{row['share_of_copy_bandwidth_alone']:.2f}" if "alone" in row else ""
        cells = [
            row["operation"],
            row["dtype"],
            "×".join(map(str, row["latent"])),
            str(row["batch"]),
            f"{row['tensor_bytes'] / 1e6:.1f}",
            f"{cold:.1f}",
            f"{row['share_of_copy_bandwidth']:.2f}",
            alone,
            f"{row['eager']['median_us'] / cold:.2f}" if "eager" in row else "",
            compiled,
            str(row.get("launches", "")),
            f"{row['host_us']:.1f}" if "host_us" in row else "",
        ]
        rows.append(cells)
    header = [
        "operation",
        "dtype",
        "latent",
        "batch",
        "MB",
        "µs",
        "of copy",
        "alone",
        "eager ÷ ours",
        "compile ÷ ours",
    ]
    goals = _bandwidth_goals(result["rows"])
    network_header = ["operation", "dtype", "shape", "", "µs", "of copy", "eager ÷ ours", "compile ÷ ours"]
    return [
        f"### Operations, {result['gpu']}, CUDA {result['cuda']}",
        "",
        "All columns are replayed from CUDA graphs, on tensors that rotate through more memory than the L2 holds. "
        "*Of copy* is the least traffic of the row over the bandwidth of a copy of the same size in the same run; "
        "*alone* is a loss with its gradient as one operator. For the network's own operations *both* is value and "
        "gradients.",
        "",
        *table(network_header, network),
        *(["", *table([*header, "launches", "host µs"], rows)] if rows else []),
        *(["", *table(["goal, tensors of at least 64 MB", "measured", ""], goals)] if goals else []),
    ]


def _bandwidth_goals(rows: list[dict[str, Any]]) -> list[list[str]]:
    goals = []
    for operation, dtype, wanted in BANDWIDTH_GOALS:
        shares = [
            row["share_of_copy_bandwidth_alone"]
            for row in rows
            if (row["operation"], row["dtype"]) == (operation, dtype) and row["tensor_bytes"] >= CLAIMED_BYTES
        ]
        if shares:
            what = f"{operation} {dtype} ≥ {wanted} of the copy bandwidth"
            goals.append([what, f"{min(shares):.2f}", "reached" if min(shares) >= wanted else "missed"])
    return goals


def _training(result: dict[str, Any]) -> list[str]:
    cells = [
        [
            run["precision"],
            f"{run['reference'][-1]:.4f}",
            f"{run['kernel'][-1]:.4f}",
            f"{run['largest_ln_ratio']:.1e}",
        ]
        for run in result["runs"]
    ]
    header = ["precision", "last loss, reference", "last loss, kernel", "largest |ln ratio| of a step"]
    return [f"### {result['steps']} steps through torchrun", "", *table(header, cells)]
