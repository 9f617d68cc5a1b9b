"""Writes benchmarks/README.md and its plot from the JSON of benchmarks/results: python -m benchmarks.tables"""

import argparse
import json
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.gpu_tables import gpu_runs, gpu_section
from benchmarks.shapes import LATENT_1024
from benchmarks.summaries import GOALS, counts_table, decoder_table, goal_table, photographs_table, vae_table
from benchmarks.timing import RESULTS

HERE = Path(__file__).parent
PLOT = HERE / "results" / "ops_cpu.svg"
plt.rcParams["svg.hashsalt"] = "refimpl"  # the same file from the same results

# (operation, against, batches from, ratio): what the project set out to reach on the CPU, in float32.
CPU_GOALS = (
    ("v_loss", "diffusers", 4, 9.0),
    ("v_loss", "compile", 4, 3.5),
    ("add_noise", "diffusers", 4, 4.8),
    ("add_noise", "compile", 4, 1.15),
    ("keyed_normal", "randn", 1, 3.5),
    ("keyed step", "eager", 1, 4.0),
)
# (dtype, share of the ceiling) of add_noise and of v_loss from batch 4 on
CEILING_GOALS = (("float32", 0.9), ("bfloat16", 0.75))
CEILING_ROWS = (("add_noise", "kernel"), ("v_loss", "kernel"), ("v_loss", "kernel alone"))
THREADS_GOAL = 1.8
# (state of the caches, freed memory): the columns of the goals
CONDITIONS = (("warm", "returned"), ("cold", "returned"), ("cold", "kept"))
SHOWN_DTYPES = ("float32", "bfloat16")  # of the tables; float16 is in the JSON


INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks.tables` from `results/*.json`; the benchmarks write those, and assert agreement with
the reference before they time anything. Ratios are medians over interleaved rounds, quartiles in brackets.

These operations are a tiny share of an SDXL training step: their worth is exact arithmetic, noise that is a function
of the sample, and one pass over memory, not a faster step."""

CPU_COLUMNS = """`v_loss` is the forward and the backward pass with the batch's mean in between, and *alone* the same
loss and gradient without autograd; `step` is add_noise and v_loss; `keyed step` the same with the drawing of the
noise. `diffusers` is what a row replaces: `scheduler.add_noise`, or `get_velocity`, weighted mean square and
backward, or both. `compile` is torch.compile for each shape.

- Caches: *warm* means that the same function has just run five times, *cold* that 64 MB of other memory were read in
  between, as a network's pass does. Batch 512 fits no cache, so it is timed cold only.
- The ceiling is the minimal traffic of the row over the bandwidth of `torch.add(x, y, out=z)` on tensors of the same
  size, timed in the same rounds, as warm or as cold.
- Freed memory is *returned* by default: glibc gives large blocks back to the system, and whoever allocates pays for
  fresh pages. The kernels keep their own blocks (`csrc/blocks.h`); the others do not. With freed memory *kept* for
  all (mallopt; B ≥ 64) arithmetic and traffic remain."""

CPU_CAUSES = """What limits the rows that miss their goal:

- torch's own `mean` and backward pass of four losses take {floor_us:.0f} µs here with warm caches, whoever computes
  the losses: {floor_share:.0%} of our v_loss at batch 4. With cold caches their code has to be fetched as well. The
  rows *alone* are without them.
- `keyed step` draws its noise in both operations rather than store it: {draw_share:.0%} of its time at batch 4.
- At the ceiling, the ratio to another implementation is that one's distance from the ceiling, and no float32 code
  that reads the same tensors can exceed it. diffusers' add_noise moves seven tensors to our three.
- Streaming stores, which spare reading the lines that are overwritten, and software prefetching were tried: neither
  made a batch faster on this processor."""


NETWORK_COLUMNS = """Value and gradients, with latents' values as the tensors: GEGLU's halves, 64 channels in
32 groups, rows of four latent rows; float16 is in the JSON only. `adamw_ema` updates one tensor of the batch's size,
as torch does (`torch`), with the clipping in fused AdamW (`grad_scale`), and without norm and clipping (*alone*).
Its ceiling is torch.add on tensors of that size: above 1, a row moves its bytes faster than that."""


def load(name: str) -> dict | None:
    """A result, or None when the benchmark has not been run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def ratio(spread: dict | None) -> str:
    """Median with quartiles."""
    if spread is None:
        return ""
    return f"{spread['median']:.2f} ({spread['quartile_low']:.2f}–{spread['quartile_high']:.2f})"


def cpu_tables(result: dict) -> list[str]:
    """A table for each operation, as processes run by default."""
    lines = []
    for operation in dict.fromkeys(row["operation"] for row in result["rows"]):
        table = [
            row
            for row in result["rows"]
            if row["operation"] == operation
            and row["freed memory"] == "returned"
            and row["dtype"] in SHOWN_DTYPES
        ]
        against = list(table[0]["kernel is faster by"])
        ours = list(table[0].get("share of the ceiling", ()))
        heads = ["dtype", "latent", "batch", "caches", "ours, ms", *(f"{name} ÷ ours" for name in against)]
        heads += [name.replace("kernel", "of the ceiling").replace(" alone", ", alone") for name in ours]
        lines += ["", f"### {operation}", "", f"| {' | '.join(heads)} |"]
        lines.append("|---|---|--:|---" + "|--:" * (len(heads) - 4) + "|")
        for row in table:
            cells = [row["dtype"], "×".join(map(str, row["latent"])), str(row["batch"]), row["caches"]]
            cells.append(f"{row['times']['kernel']['median_ms']:.3f}")
            cells += [ratio(row["kernel is faster by"][name]) for name in against]
            cells += [ratio(row["share of the ceiling"][name]) for name in ours]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def cpu_goals(result: dict) -> list[str]:
    """Each goal with the span of the medians over the batches that were measured."""
    heads = [f"{caches}, freed memory {memory}" for caches, memory in CONDITIONS]
    lines = [f"| goal | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for operation, against, batch, goal in CPU_GOALS:
        spans = [
            reached(goal, [row["kernel is faster by"][against]["median"] for row in table])
            for table in (chosen(result, operation, "float32", batch, *c) for c in CONDITIONS)
        ]
        lines.append(f"| {operation} ≥ {goal} × {against}, float32, B ≥ {batch} | {' | '.join(spans)} |")
    for dtype, goal in CEILING_GOALS:
        for operation, column in CEILING_ROWS:
            spans = [
                reached(goal, [row["share of the ceiling"][column]["median"] for row in table])
                for table in (chosen(result, operation, dtype, 4, *c) for c in CONDITIONS)
            ]
            alone = " alone" if column == "kernel alone" else ""
            lines.append(
                f"| {operation}{alone} ≥ {goal} of the ceiling, {dtype}, B ≥ 4 | {' | '.join(spans)} |"
            )
    fastest = result["keyed_normal on two threads"]["two threads are faster by, fastest calls"]
    lines.append(
        f"| keyed_normal on two threads ≥ {THREADS_GOAL} × on one, fastest calls "
        f"| {reached(THREADS_GOAL, [fastest])} | | |"
    )
    return lines


def cpu_causes(result: dict) -> str:
    """Why goals are missed, with the numbers that say so."""
    floor = result["torch's own mean and backward"]["median_ms"]
    loss, drawing, keyed = (
        chosen(result, operation, "float32", 4, "warm", "returned")[0]["times"]["kernel"]["median_ms"]
        for operation in ("v_loss", "keyed_normal", "keyed step")
    )
    return CPU_CAUSES.format(floor_us=1e3 * floor, floor_share=floor / loss, draw_share=2 * drawing / keyed)


def chosen(result: dict, operation: str, dtype: str, batch: int, caches: str, memory: str) -> list[dict]:
    """Rows of an operation, dtype and condition from a batch size on."""
    return [
        row
        for row in result["rows"]
        if (row["operation"], row["dtype"], row["caches"], row["freed memory"])
        == (operation, dtype, caches, memory)
        and row["batch"] >= batch
    ]


def reached(goal: float, medians: list[float]) -> str:
    """The span of the medians and whether the goal lies below all, some or none of them."""
    if not medians:
        return "not measured"
    verdict = "reached" if min(medians) >= goal else "reached at some B" if max(medians) >= goal else "missed"
    return f"{min(medians):.2f} to {max(medians):.2f}: {verdict}"


def plot(result: dict) -> None:
    """Time per element of the loss with cold caches, forward and backward, over the batch; one panel per dtype."""
    dtypes = sorted({row["dtype"] for row in result["rows"]})
    figure, axes = plt.subplots(1, len(dtypes), figsize=(4 * len(dtypes), 3.2), sharey=True, squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        rows = [
            row
            for row in chosen(result, "v_loss", dtype, 1, "cold", "returned")
            if tuple(row["latent"]) == LATENT_1024
        ]
        batches = [row["batch"] for row in rows]
        for name in ("eager", "diffusers", "compile", "kernel"):
            nanoseconds = [
                1e6 * row["times"][name]["median_ms"] / (row["batch"] * math.prod(row["latent"]))
                for row in rows
            ]
            axis.plot(batches, nanoseconds, marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="batch", title=f"{dtype}, cold caches")
    axes[0][0].set_ylabel("v_loss forward + backward, ns per element")
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)


def machine(result: dict) -> str:
    """On what a result was measured."""
    e = result["environment"]
    return f"{e['device']}, {e['threads']} thread(s), torch {e['torch']}, python {e['python']}, commit {e['commit']}"


def loaded_machine(result: dict) -> str:
    """The same, with what else ran there."""
    before, after = result["load average before and after"]
    return (
        f"{machine(result)}. Load average {before:.1f} before and {after:.1f} after: what is above 1 "
        "is other work on the machine, which slows memory and threads down."
    )


def main() -> None:
    """Writes README.md."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    lines = [INTRODUCTION]
    cpu = load("ops_cpu")
    if cpu is not None:
        plot(cpu)
        lines += [
            "",
            "## Operations on the CPU",
            "",
            f"Measured on: {loaded_machine(cpu)}",
            "",
            CPU_COLUMNS,
            "",
            *cpu_goals(cpu),
            "",
            cpu_causes(cpu),
            "",
            f"![time per element of v_loss](results/{PLOT.name})",
            *cpu_tables(cpu),
        ]
    network = load("network_ops_cpu")
    if network is not None:
        lines += [
            "",
            "## Operations of the network's blocks and the update on the CPU",
            "",
            f"Measured on: {loaded_machine(network)} {NETWORK_COLUMNS}",
            *cpu_tables(network),
        ]
    lines += counts_table(load("unet_counts"))
    lines += gpu_section(gpu_runs())
    lines += goal_table({name: load(name) for name in GOALS})
    lines += decoder_table(load("decoder"))
    lines += vae_table(load("vae"))
    lines += photographs_table(load("photographs"))
    (HERE / "README.md").write_text("\n".join(lines) + "\n")
    print(f"wrote {HERE / 'README.md'}")


if __name__ == "__main__":
    main()
