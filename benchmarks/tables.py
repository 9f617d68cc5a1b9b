"""Writes benchmarks/README.md and its plot from the JSON of benchmarks/results: python -m benchmarks.tables"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.timing import RESULTS

HERE = Path(__file__).parent
PLOT = HERE / "results" / "ops_cpu.svg"

# (operation, against, batches from, ratio): what the project set out to reach on the CPU.
CPU_GOALS = (
    ("v_loss", "diffusers", 4, 9.0),
    ("v_loss", "compile", 4, 3.5),
    ("add_noise", "diffusers", 4, 4.8),
    ("add_noise", "compile", 4, 1.15),
    ("keyed_normal", "randn", 1, 3.5),
    ("keyed step", "eager", 1, 4.0),
)


INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks.tables` from `results/*.json`; the benchmarks write those, and assert agreement with
the reference before they time anything. Ratios are medians over interleaved rounds, quartiles in brackets.

These operations are under 0.01 % of a training step: their worth is exact arithmetic, noise that is a function of the
sample, and one pass over memory, not a faster step."""

CPU_COLUMNS = """`v_loss` is forward and backward with the batch's mean in between; `keyed step` is add_noise and the
loss's forward and backward, the drawing of the noise included. A ceiling is the minimal traffic over the bandwidth of
`torch.add(x, y, out=z)` on tensors of the same size: warm on the same tensors, cold on rotating ones. Freed memory is
`returned` by default: glibc gives large blocks back to the system, and every call pays for fresh pages, which favours
whoever allocates least. With freed memory `kept` (mallopt) arithmetic and traffic remain."""


def load(name: str) -> dict | None:
    """A result, or None when the benchmark has not been run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def ratio(spread: dict | None) -> str:
    """Median with quartiles."""
    if spread is None:
        return ""
    return f"{spread['median']:.2f} ({spread['quartile_low']:.2f}–{spread['quartile_high']:.2f})"


def cpu_rows(result: dict) -> list[str]:
    """The table of the CPU's operations."""
    lines = [
        "| freed memory | op | dtype | batch | ours, ms | eager ÷ ours | compile ÷ ours | diffusers ÷ ours "
        "| randn ÷ ours | of the warm ceiling | of the cold ceiling |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        faster = row["kernel is faster by"]
        cells = [
            row["freed memory"],
            row["operation"],
            row["dtype"],
            str(row["batch"]),
            f"{row['times']['kernel']['median_ms']:.3f}",
            *(ratio(faster.get(name)) for name in ("eager", "compile", "diffusers", "randn")),
            *(ratio(row.get(f"share of the {kind} ceiling")) for kind in ("warm", "cold")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def cpu_goals(result: dict) -> list[str]:
    """Each goal with the span of the medians over the batches that were measured."""
    lines = ["| goal | measured by default | measured with freed memory kept |", "|---|---|---|"]
    for operation, against, batch, goal in CPU_GOALS:
        spans = [
            reached(
                goal,
                [
                    row["kernel is faster by"][against]["median"]
                    for row in chosen(result, operation, "float32", batch, memory)
                ],
            )
            for memory in ("returned", "kept")
        ]
        lines.append(f"| {operation} ≥ {goal} × {against}, float32, B ≥ {batch} | {' | '.join(spans)} |")
    for dtype, goal in (("float32", 0.9), ("bfloat16", 0.75)):
        for operation in ("add_noise", "v_loss"):
            spans = [
                reached(
                    goal,
                    [
                        row["share of the warm ceiling"]["median"]
                        for row in chosen(result, operation, dtype, 4, memory)
                    ],
                )
                for memory in ("returned", "kept")
            ]
            lines.append(
                f"| {operation} ≥ {goal} of the warm ceiling, {dtype}, B ≥ 4 | {' | '.join(spans)} |"
            )
    fastest = result["keyed_normal on two threads"]["two threads are faster by, fastest calls"]
    lines.append(
        f"| keyed_normal on two threads ≥ 1.8 × on one, fastest calls | | {reached(1.8, [fastest])} |"
    )
    return lines


def chosen(result: dict, operation: str, dtype: str, batch: int, memory: str) -> list[dict]:
    """Rows of an operation and dtype from a batch size on."""
    return [
        row
        for row in result["rows"]
        if (row["operation"], row["dtype"], row["freed memory"]) == (operation, dtype, memory)
        and row["batch"] >= batch
    ]


def reached(goal: float, medians: list[float]) -> str:
    """The span of the medians and whether the goal lies below all, some or none of them."""
    if not medians:
        return "not measured"
    verdict = "reached" if min(medians) >= goal else "reached at some B" if max(medians) >= goal else "missed"
    return f"{min(medians):.2f} to {max(medians):.2f}: {verdict}"


def plot(result: dict) -> None:
    """Time per element of the loss, forward and backward, over the batch; one panel per dtype."""
    dtypes = sorted({row["dtype"] for row in result["rows"]})
    figure, axes = plt.subplots(1, len(dtypes), figsize=(4 * len(dtypes), 3.2), sharey=True, squeeze=False)
    elements = result["latent"][0] * result["latent"][1] * result["latent"][2]
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        rows = chosen(result, "v_loss", dtype, 1, "returned")
        batches = [row["batch"] for row in rows]
        for name in ("eager", "diffusers", "compile", "kernel"):
            nanoseconds = [1e6 * row["times"][name]["median_ms"] / (row["batch"] * elements) for row in rows]
            axis.plot(batches, nanoseconds, marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="batch", title=dtype)
    axes[0][0].set_ylabel("v_loss forward + backward, ns per element")
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)


def gpu_rows(result: dict) -> list[str]:
    """The table of the GPU's operations."""
    lines = [
        "| op | dtype | latent | batch | MB per tensor | ours cold, µs | of the copy's bandwidth | eager ÷ ours "
        "| compile ÷ ours | launches | host µs |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        cold = row["cold"]["median_us"]
        compiled = f"{row['compile']['median_us'] / cold:.2f}" if "compile" in row else ""
        cells = [
            row["operation"],
            row["dtype"],
            "×".join(map(str, row["latent"])),
            str(row["batch"]),
            f"{row['tensor_bytes'] / 1e6:.1f}",
            f"{cold:.1f}",
            f"{row['share_of_copy_bandwidth']:.2f}",
            f"{row['eager']['median_us'] / cold:.2f}",
            compiled,
            str(row.get("launches", "")),
            f"{row['host_us']:.1f}" if "host_us" in row else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def machine(result: dict) -> str:
    """On what a result was measured."""
    e = result["environment"]
    return f"{e['device']}, {e['threads']} thread(s), torch {e['torch']}, python {e['python']}, commit {e['commit']}"


def main() -> None:
    """Writes README.md."""
    lines = [INTRODUCTION]
    cpu, gpu = load("ops_cpu"), load("ops_gpu")
    if cpu is not None:
        plot(cpu)
        before, after = cpu["load average before and after"]
        lines += [
            "",
            "## Operations on the CPU",
            "",
            f"Measured on: {machine(cpu)}; latents {cpu['latent']}. Load average {before:.1f} before and {after:.1f} "
            "after: what is above 1 is other work on the machine, which slows memory and threads down.",
            "",
        ]
        lines += [
            CPU_COLUMNS,
            "",
            *cpu_goals(cpu),
            "",
            f"![time per element of v_loss](results/{PLOT.name})",
            "",
            *cpu_rows(cpu),
        ]
    lines += ["", "## Operations on CUDA", ""]
    if gpu is None:
        lines.append(
            "Not measured: no GPU has been available. `python -m benchmarks.gpu --out DIR` builds, tests, checks and "
            "times the CUDA kernels in one call of at most eight minutes."
        )
    else:
        lines += [
            f"Measured on: {gpu['gpu']}, CUDA {gpu['cuda']}, built for {gpu['arches']}.",
            "",
            *gpu_rows(gpu),
        ]
    (HERE / "README.md").write_text("\n".join(lines) + "\n")
    print(f"wrote {HERE / 'README.md'}")


if __name__ == "__main__":
    main()
