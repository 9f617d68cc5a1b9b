"""The part of benchmarks/README.md that says what a GPU has shown, from the JSON of its stages."""

from collections.abc import Mapping
from typing import Any

GPU_RESULTS = ("gpu", "ops_gpu", "step_gpu", "update_gpu", "training_gpu")
SHOWN_BATCHES = (512, 64, 8)  # of the operations; the others are in the JSON
GIB = 2**30
CLAIMED_BYTES = 64e6  # smaller tensors can sit in the L2

# (operation, dtype, share of the copy bandwidth) to reach at 64 MB or more
BANDWIDTH_GOALS = (
    ("add_noise", "float32", 0.90),
    ("v_loss", "float32", 0.90),
    ("add_keyed_noise", "float32", 0.75),
)
# (precision, batch of one only, images per second at 1024²)
SPEED_GOALS = (("tf32", False, 12.0), ("bf16", False, 22.0), ("bf16", True, 6 * 1.65))
OVER_DIFFUSERS = 1.5


def gpu_section(results: Mapping[str, dict[str, Any] | None]) -> list[str]:
    """The lines of the section; where no result is, it says how to get one."""
    lines = ["", "## On a GPU", ""]
    if not any(results.values()):
        return [
            *lines,
            "Not measured: no GPU has been available. `python -m benchmarks.gpu --out DIR` builds, tests, checks and "
            "times the CUDA kernels and a full-size training step.",
        ]
    parts = {
        "gpu": _stages,
        "step_gpu": _steps,
        "update_gpu": _updates,
        "ops_gpu": _operations,
        "training_gpu": _training,
    }
    for name, part in parts.items():
        if (result := results.get(name)) is not None:
            lines += [*part(result), ""]
    return lines[:-1]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _stages(result: dict[str, Any]) -> list[str]:
    e = result["environment"]
    rows = [
        [name, stage["result"], f"{stage.get('seconds', 0)} s"] for name, stage in result["stages"].items()
    ]
    told = f"torch {e['torch']}, python {e['python']}, commit {e['commit']}"
    return [
        f"How the stages of `benchmarks.gpu` ended ({told}):",
        "",
        *_table(["stage", "result", "took"], rows),
    ]


def _name(row: dict[str, Any]) -> str:
    who = row["who"] if row["compile"] == "none" else f"{row['who']}, compiled by block"
    if row["checkpointing"] != "none":
        who += f", {row['checkpointing']} checkpointing"
    return who if row["attention"] == "auto" else f"{who}, {row['attention']} attention"


def _steps(result: dict[str, Any]) -> list[str]:
    timed = [row for row in result["rows"] if row["result"] == "timed"]
    rows = []
    for row in timed:
        parts = ", ".join(f"{part} {ms:.0f}" for part, ms in row["parts_ms"].items())
        planned = f"{row['planned_bytes'] / GIB:.1f}" if row.get("planned_bytes") else ""
        cells = [
            f"{row['width']}×{row['height']}",
            row["precision"],
            _name(row),
            f"{row['batch']} × {row['accumulate']}",
            f"{row['step_ms']:.0f} ({row['quartile_low_ms']:.0f}–{row['quartile_high_ms']:.0f})",
            parts,
            f"{row['images_per_second']:.2f}",
            f"{row['tflop_per_second']:.0f}" if "tflop_per_second" in row else "",
            f"{row['peak_bytes'] / GIB:.1f}",
            planned,
        ]
        rows.append(cells)
    header = [
        "images",
        "precision",
        "step",
        "batch",
        "ms",
        "of which",
        "images/s",
        "TFLOP/s",
        "peak GiB",
        "planned",
    ]
    lines = [
        f"### One optimizer step of SDXL, {result['gpu']}",
        "",
        "Random weights, cached latents and text states, AdamW and EMA included; *batch* is images per micro-batch × "
        "micro-batches. `diffusers` is the step of its SDXL trainer rebuilt from the installed library. TFLOP/s "
        "counts 20.23 TFLOP of the UNet per 1024² image, recomputed work not counted.",
        "",
        *_table(header, rows),
        "",
        *_table(["goal", "measured", ""], _step_goals(timed)),
    ]
    failed = [row for row in result["rows"] if row["result"] != "timed"]
    lines += [f"- {_name(row)} {row['precision']}: {row['result']}" for row in failed]
    for row in timed:
        if row.get("share_by_kernel_class"):
            lines += ["", *_classes(row)]
    return [*lines, "", *_attention(result["attention"])]


def _best(rows: list[dict[str, Any]], who: str, precision: str, single: bool) -> float | None:
    speeds = [
        row["images_per_second"]
        for row in rows
        if (row["who"], row["precision"]) == (who, precision)
        and (row["images_per_step"] == 1) == single
        and (row["width"], row["height"]) == (1024, 1024)
    ]
    return max(speeds, default=None)


def _step_goals(rows: list[dict[str, Any]]) -> list[list[str]]:
    goals = []
    for precision, single, wanted in SPEED_GOALS:
        ours = _best(rows, "ours", precision, single)
        if ours is not None:
            what = f"{precision} at 1024²{', one image per step' if single else ''}: ≥ {wanted:.1f} images/s"
            goals.append([what, f"{ours:.2f}", "reached" if ours >= wanted else "missed"])
    for precision in ("tf32", "bf16"):
        ours, theirs = (_best(rows, who, precision, False) for who in ("ours", "diffusers"))
        if ours and theirs:
            what = f"{precision} at 1024²: ≥ {OVER_DIFFUSERS} × diffusers"
            verdict = "reached" if ours >= OVER_DIFFUSERS * theirs else "missed"
            goals.append([what, f"{ours / theirs:.2f} ×", verdict])
    return goals


def _classes(row: dict[str, Any]) -> list[str]:
    classes = {name: entry for name, entry in row["share_by_kernel_class"].items() if name != "longest"}
    total = sum(entry["ms"] for entry in classes.values())
    cells = [
        [name, f"{entry['ms']:.1f}", f"{100 * entry['ms'] / total:.0f} %", str(entry["launches"])]
        for name, entry in classes.items()
    ]
    title = (
        f"Kernels of one step: {_name(row)}, {row['precision']}, batch {row['batch']} × {row['accumulate']}"
    )
    return [title, "", *_table(["class", "ms", "share", "launches"], cells)]


def _attention(rows: list[dict[str, Any]]) -> list[str]:
    cells = [
        [
            row["choice"],
            f"{row['heads']} × {row['tokens']} × {row['keys']}",
            f"{row['forward_ms']:.3f}" if "forward_ms" in row else "refused",
            f"{row['forward_backward_ms']:.3f}" if "forward_ms" in row else row.get("refused", ""),
            f"{row['relative_error']:.1e}" if "forward_ms" in row else "",
        ]
        for row in rows
    ]
    header = [
        "attention",
        "heads × tokens × keys",
        "forward, ms",
        "and backward, ms",
        "error against float64",
    ]
    return ["### Attention, batch 2", "", *_table(header, cells)]


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
        *_table(header, cells),
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
    network_header = ["operation", "dtype", "shape", "", "µs", "of copy", "eager ÷ ours", "compile ÷ ours"]
    return [
        f"### Operations, {result['gpu']}, CUDA {result['cuda']}",
        "",
        "All columns are replayed from CUDA graphs, on tensors that rotate through more memory than the L2 holds. "
        "*Of copy* is the least traffic of the row over the bandwidth of a copy of the same size in the same run; "
        "*alone* is a loss with its gradient as one operator. For the network's own operations *both* is value and "
        "gradients.",
        "",
        *_table(network_header, network),
        "",
        *_table([*header, "launches", "host µs"], rows),
        "",
        *_table(["goal, tensors of at least 64 MB", "measured", ""], _bandwidth_goals(result["rows"])),
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
    return [f"### {result['steps']} steps through torchrun", "", *_table(header, cells)]
