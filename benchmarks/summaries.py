"""What the benchmarks beside the operations measured, one row per goal, for benchmarks/README.md."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

HEADS = """| what | measured | goal | |
|---|---|---|---|"""


class Goal(NamedTuple):
    """One figure, and what it was to reach."""

    what: str
    value: float
    unit: str
    goal: float
    at_least: bool

    def row(self) -> str:
        """A line of the table."""
        is_reached = self.value >= self.goal if self.at_least else self.value <= self.goal
        sign = "≥" if self.at_least else "≤"
        cells = (
            self.what,
            f"{self.value:,.4g} {self.unit}",
            f"{sign} {self.goal:,g} {self.unit}",
            "reached" if is_reached else "missed",
        )
        return f"| {' | '.join(cells)} |"


def plan_goals(result: dict) -> Iterator[Goal]:
    """Buckets and plan (N §4.1.2), 1 and 6 million images."""
    million, six = result["sizes"]
    both = "1 M images assigned and planned, one core"
    yield Goal(both, million["assign and plan"]["median_ms"] / 1e3, "s", 1, False)
    yield Goal(f"{both}, peak memory", million["assign and plan, peak MB"], "MB", 300, False)
    yield Goal("6 M sizes assigned to 33 buckets", six["assign"]["median_ms"], "ms", 30, False)
    yield Goal("6 M images planned for 256 ranks", six["plan"]["median_ms"], "ms", 160, False)
    yield Goal("the same, peak memory", six["plan, peak MB"], "MB", 150, False)


def image_goals(result: dict) -> Iterator[Goal]:
    """JPEG to a bucket's crop."""
    faster = result["fast is faster by"]["median"]
    yield Goal("1.5-megapixel JPEG to an 832×1216 crop: fast decoder over Pillow", faster, "×", 3, True)
    yield Goal(
        "the same, largest difference", result["largest difference, levels"], "levels of 255", 2, False
    )


def index_goals(result: dict) -> Iterator[Goal]:
    """Indexing from headers."""
    wanted = result["wanted"]
    speed = result["headers"]["images_per_processor_second"]
    yield Goal(
        "images indexed from headers, one core, warm storage",
        speed,
        "/s",
        wanted["images_per_processor_second"],
        True,
    )
    last = result["curve"][-1]
    what = f"memory resident per image at {last['images']:,}"
    yield Goal(what, last["resident_bytes_per_image"], "bytes", wanted["resident_bytes_per_image"], False)


def cache_goals(result: dict) -> Iterator[Goal]:
    """Random reads of cached latents."""
    yield Goal(
        "random reads of cached latents over one .npz per image", result["npz over cache"], "×", 10, True
    )


def interop_goals(result: dict) -> Iterator[Goal]:
    """Full-size checkpoints of random weights in fp16."""
    names = {
        "load": "full-size fp16 file into a bf16 UNet, over reading its bytes through safetensors",
        "to_diffusers": "full-size single file to diffusers folder, over copying the file",
        "to_single": "and back",
    }
    for key, what in names.items():
        yield Goal(what, result["ratios"][key], "×", result["goals"][key], False)


def unet_goals(result: dict) -> Iterator[Goal]:
    """The UNet's training step."""
    yield Goal(
        "training step of the tiny UNet over diffusers' of the same weights",
        result["worst_ratio"],
        "×",
        1,
        False,
    )


GOALS: dict[str, Callable[[dict], Iterator[Goal]]] = {
    "plan": plan_goals,
    "index": index_goals,
    "images": image_goals,
    "cache": cache_goals,
    "interop": interop_goals,
    "unet_cpu": unet_goals,
}


def goal_table(results: dict[str, dict | None]) -> list[str]:
    """The table of all results there are, by name of their JSON."""
    rows = [goal.row() for name, goals in GOALS.items() if (r := results.get(name)) for goal in goals(r)]
    return ["", "## Data, checkpoints, networks", "", *HEADS.split("\n"), *rows] if rows else []


def counts_table(result: dict | None) -> list[str]:
    """What both passes of SDXL's UNet move and keep, counted by `python -m benchmarks.count_unet`."""
    if result is None:
        return []
    names = "precision", "backend", "activation_checkpointing"
    sizes = (("other_bytes", 1e9), ("product_bytes", 1e9), ("kept_bytes", 2**30))
    rows = []
    for row in result["rows"]:
        cells = [*(row[name] for name in names), *(f"{row[name] / unit:.1f}" for name, unit in sizes)]
        rows.append(f"| {' | '.join(cells)} | {row['calls']:,} |")
    return [
        "",
        "## What SDXL's UNet moves and keeps, counted",
        "",
        f"A forward and a backward pass of {result['batch']} images of {result['side']}² on the meta device: the "
        "bytes of the tensors that each operation takes and returns, in GB, and of what is alive when the forward "
        "pass ends, in GiB. Nothing is timed. Goals for tf32, all reached: 360 GB without products for kernel with "
        "`none`; kept, 90 GiB with GEGLU alone, 86 with all kernels, 78 with `cheap`.",
        "",
        "| precision | operations | activation checkpointing | moved without products | by products | kept | calls |",
        "|---|---|---|--:|--:|--:|--:|",
        *rows,
    ]


def decoder_table(result: dict | None) -> list[str]:
    """A decoder that learned JPEG's blocks, before and after it was finetuned on clean pictures (N §4.4)."""
    if result is None:
        return []
    images, before, after = result["images"], result["before"], result["after"]
    rows = [f"| {name} | {before[name]:.3f} | {after[name]:.3f} |" for name in ("blockiness", "psnr", "ssim")]
    return [
        "",
        "## Decoder finetuning (N §4.4)",
        "",
        f"A small autoencoder trained on {images['blocky']} demo pictures saved as JPEG of quality "
        f"{result['jpeg quality']}; its decoder then finetuned on all {images['all']}, of which {images['left out']} "
        f"with blockiness above {result['blockiness limit']} were left out; measured on {images['heldout']} held-out "
        f"clean ones, whose own blockiness is {before['blockiness of the originals']:.3f}.",
        "",
        "| | start | finetuned |",
        "|---|--:|--:|",
        *rows,
    ]


def vae_table(result: dict | None) -> list[str]:
    """The full-size autoencoder on a photograph: each layer on the whole map, and on tiles of rows."""
    if result is None:
        return []
    rows = []
    for name, row in result["rows"].items():
        gib = (row["peak_bytes"] - row["network_and_input_bytes"]) / 2**30
        apart = (
            ""
            if "largest_difference" not in row
            else f"{row['largest_difference'] / row['largest_value']:.1e}"
        )
        rows.append(f"| {name} | {row['side']}² | {row['processor_seconds']:.0f} | {gib:.2f} | {apart} |")
    return [
        "",
        "## The autoencoder in tiles",
        "",
        "SDXL's autoencoder at its full size, random weights, float32, on a photograph, one "
        f"thread. *Tiled* is `tile = {result['tile']}`: every layer on strips of so many rows, in turn. Memory is "
        "what the network and its input do not take themselves; the difference is the largest, over the "
        "largest value.",
        "",
        "| | px | processor, s | memory, GiB | difference from the whole |",
        "|---|--:|--:|--:|--:|",
        *rows,
    ]


def photographs_table(result: dict | None) -> list[str]:
    """Photographs cached at SDXL's sizes: by a run that was killed midway and continued, and by one that was not."""
    if result is None:
        return []
    left = {"continued": result["images"] - result["cached_when_killed"], "uninterrupted": result["images"]}
    rows = [
        f"| {name} | {left[name]} | {row['seconds']:.0f} | {row['processor_seconds']:.0f} | "
        f"{row['peak_bytes'] / 2**30:.2f} |"
        for name, row in result["rows"].items()
    ]
    return [
        "",
        "## Photographs cached at SDXL's sizes",
        "",
        f"`refimpl cache` of {result['images']} photographs in {result['buckets']} of SDXL's buckets, through the "
        "tiny autoencoder and the tiny text towers, one thread. A run was killed when "
        f"{result['cached_when_killed']} were in its shards, and the same command *continued* it, to the bytes of an "
        "*uninterrupted* one.",
        "",
        "| | images encoded | s | processor, s | memory, GiB |",
        "|---|--:|--:|--:|--:|",
        *rows,
    ]
