"""The tables of benchmarks/README.md about one optimizer step of SDXL on a GPU, from `gpu_step`'s JSON."""

from typing import Any

GIB = 2**30
# (precision, batch of one only, images per second at 1024²)
SPEED_GOALS = (("tf32", False, 12.0), ("bf16", False, 22.0), ("bf16", True, 6 * 1.65))
OVER_DIFFUSERS = 1.5


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _name(row: dict[str, Any]) -> str:
    who = row["who"] if row["compile"] == "none" else f"{row['who']}, compiled by block"
    if row["checkpointing"] != "none":
        who += f", {row['checkpointing']} checkpointing"
    if row.get("attention", "auto") != "auto":
        who += f", {row['attention']} attention"
    return f"{who}, captured" if row.get("captured", False) else who


def step_section(result: dict[str, Any]) -> list[str]:
    """The times and goals, the kernels of each of our rows, and the attention, as lines."""
    timed = [row for row in result["rows"] if row["result"] == "timed"]
    rows = []
    for row in timed:
        parts = ", ".join(f"{part} {ms:.0f}" for part, ms in row["parts_ms"].items())
        planned = f"{row['planned_bytes'] / GIB:.1f}" if row.get("planned_bytes") else ""
        cells = [
            f"{row['width']}×{row['height']}",
            str(row["memory_gib"]),
            row["precision"],
            _name(row),
            f"{row['batch']} × {row['accumulate']}",
            f"{row['step_ms']:.0f} ({row['quartile_low_ms']:.0f}–{row['quartile_high_ms']:.0f})",
            parts,
            f"{row['images_per_second']:.2f}",
            f"{row['tflop_per_second']:.0f}" if "tflop_per_second" in row else "",
            *_kernels(row),
            f"{row['peak_bytes'] / GIB:.1f}",
            planned,
            row.get("commit", "")[:7],
        ]
        rows.append(cells)
    header = ["images", "GiB to use", "precision", "step", "batch", "ms", "of which", "images/s", "TFLOP/s"]
    header += ["kernels, ms", "launches", "peak GiB", "planned", "commit"]
    lines = [
        f"### One optimizer step of SDXL, {result['gpu']}",
        "",
        "Random weights, cached latents and text states, AdamW and EMA included; *batch* is images per micro-batch × "
        "micro-batches. `diffusers` is the step of its SDXL trainer rebuilt from the installed library. TFLOP/s "
        "counts 20.23 TFLOP of the UNet per 1024² image, recomputed work not counted. Where the kernels take much "
        "less than the step, the GPU waits for the host, which launches them one by one. A *captured* step replays "
        "its micro-batches from a CUDA graph, whose memory is in its peak; the trainer can't do that yet, so it "
        "reaches no goal. *Peak* is what the allocator gave out at most, *planned* what the memory plan foretold.",
        "",
        *table(header, rows),
        "",
        *table(["goal", "measured", ""], _step_goals(timed)),
    ]
    failed = [row for row in result["rows"] if row["result"] != "timed"]
    lines += [f"- {_name(row)} {row['precision']}: {row['result']}" for row in failed]
    for row in timed:
        if row["who"] == "ours" and row.get("share_by_kernel_class"):
            lines += ["", *_classes(row)]
    return [*lines, "", *_attention(result["attention"])]


def _kernels(row: dict[str, Any]) -> list[str]:
    """Milliseconds and number of the kernels of one step."""
    classes = row.get("share_by_kernel_class") or {}
    entries = [entry for name, entry in classes.items() if name != "longest"]
    if not entries:
        return ["", ""]
    return [f"{sum(e['ms'] for e in entries):.0f}", str(sum(e["launches"] for e in entries))]


def _best(rows: list[dict[str, Any]], who: str, precision: str, single: bool) -> float | None:
    speeds = [
        row["images_per_second"]
        for row in rows
        if (row["who"], row["precision"]) == (who, precision)
        and (row["images_per_step"] == 1) == single
        and (row["width"], row["height"]) == (1024, 1024)
        and row["memory_gib"] != "all"  # the goals are those of a card of 80 GB
        and not row.get("captured", False)  # and of what the trainer does
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
    return [title, "", *table(["class", "ms", "share", "launches"], cells)]


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
    return ["### Attention, batch 2", "", *table(header, cells)]
