"""The whole pipeline end to end on a small data set, with a report and target figures.

images → index → buckets → autoencoder → scale-and-shift → UNet → checkpoint → (new process) samples → report.html
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl.commands.terminal import parsed
from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.run.presets import load_config

if TYPE_CHECKING:
    from refimpl.report.run_page import Criterion

COLOUR_PROMPTS = ("completely black", "completely white", "completely red")
FIXED_PROMPTS = (
    *COLOUR_PROMPTS, "completely blue", "completely green", "completely yellow",
    "red circle, white background", "blue square, yellow background", "photograph, cat",
)  # fmt: skip
SDXL_SIGMA_MAX = 14.6  # where the published schedule ends (N §2.2)
SDXL_LATENT_SIDE = 128  # of 1024² images, for which that σ was not enough (N §2.3)
COLOUR_SEEDS = 8
SHORT_STEPS = (700, 1300)  # of the autoencoder, of the UNet
WANTED_PSNR = {False: 24.0, True: 20.0}  # dB, by --short
# What goes with the measured arithmetic, from a whole and a short demo on two cores, both within 4 %: the time of a
# step to that of its networks, and the other stages in steps of training.
AROUND, OTHER_STEPS = 1.15, 200
STAGES = ("data set", "autoencoder and latent statistics", "training", "sampling", "report")


@dataclass(frozen=True)
class DemoCommand:
    """Prepares real photographs and drawn illustrations, trains on them, samples, and writes report.html.

    Exits with 1 when a target figure is missed, and says which.
    """

    out: str = ""
    """Folder for everything; empty for runs/demo-001, -002 and so on."""
    short: bool = False
    """Take fewer steps, for continuous integration; the autoencoder must then reach 20 dB instead of 24."""
    seed: int = 0
    """Seed of every random draw."""


def demo_command(arguments: list[str], program: str = "refimpl demo") -> None:
    """Runs the demo; leaves report.html, metrics.json, metrics.jsonl, the checkpoint and all samples."""
    command = parsed(DemoCommand, arguments, program)
    import torch

    from refimpl.autoencoder.training import heldout_psnr
    from refimpl.data.demo.data_set import read_demo_manifest
    from refimpl.report.demo_content import environment, report_content, unet_size
    from refimpl.report.headlines.demo import demo_headlines
    from refimpl.report.run_page import write_report
    from refimpl.run.stage import read_stage, write_demo_data
    from refimpl.run.threads import use_threads
    from refimpl.run.world import World
    from refimpl.train.loop import train
    from refimpl.train.metrics.interval import peak_memory
    from refimpl.train.setup.frozen_parts import frozen_parts
    from refimpl.train.setup.out_folder import absent_folders, removed_if_empty, run_folder
    from refimpl.train.setup.prepare import prepare
    from refimpl.train.setup.resumed import settled

    config = demo_config(command)
    use_threads(config.train, config.unet, config.vae)
    world = World(0, 1, torch.device("cpu"))
    made = absent_folders(config.train.out)
    out = run_folder(config, "demo", world, setting="--out")
    config = settled(_inside(config, out), world)
    minutes = expected_seconds(config) / 60
    print(
        f"demo in {out}: {len(STAGES)} stages, about {minutes:.0f} minutes on this machine, by ten steps measured"
    )
    timings: dict[str, float] = {}

    with removed_if_empty(out, world, made), _stage(timings, 0):
        write_demo_data(config.data)
        data = read_stage(config, config.all_stages()[-1])
        heldout = read_stage(config, replace(config.all_stages()[-1], folder=config.data.heldout))
    with _stage(timings, 1):
        vae, scale_shift, statistics = frozen_parts(config, data, world.device)
        psnr = heldout_psnr(vae, heldout.index, heldout.buckets, heldout.bucket_of, world.device)
    with _stage(timings, 2):
        train(config, out, prepare(config, out, world), world)
    with _stage(timings, 3):
        samples = draw_in_new_process(config.sample.height // config.vae.factor, out)
    with _stage(timings, 4):
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        criteria, measured = judge(rows, psnr, samples, WANTED_PSNR[command.short])
        content = report_content(config, out, data, heldout, vae, scale_shift, statistics, samples)
        photographs = read_demo_manifest(out / "data").counts["train"]["photographs"]
        told = demo_headlines(
            criteria, FIXED_PROMPTS[-1], photographs, config.sample.height, unet_size(config.unet)
        )
        content = replace(content, criteria=criteria, headlines=told)
    content = replace(content, timings=timings)
    write_report(out / "report.html", content)
    metrics = {
        "criteria": [asdict(criterion) for criterion in criteria],
        **measured,
        "seconds": timings,
        "peak_memory_bytes": peak_memory(torch.device("cpu")),
        "environment": environment(),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    print(f"report: {out / 'report.html'}\nnumbers: {out / 'metrics.json'}")
    for criterion in criteria:
        verdict = "reached" if criterion.passed else "MISSED"
        print(f"  {verdict}: {criterion.name} {criterion.measured:.3f}, wanted {criterion.wanted}")
    if not all(criterion.passed for criterion in criteria):
        sys.exit(1)


def expected_seconds(config: Config) -> float:
    """What the demo will take on this machine, by ten measured steps of each network."""
    from refimpl.train.setup.pace import autoencoder_step, seconds_per_step, training_step

    autoencoder = seconds_per_step(autoencoder_step(config.vae, config.latents))
    training = seconds_per_step(training_step(config))
    steps = config.train.steps + OTHER_STEPS
    return AROUND * (config.latents.train_steps * autoencoder + steps * training)


def demo_config(command: DemoCommand) -> Config:
    """The tiny preset, with the demo's prompts, seed and length."""
    config = load_config("tiny")
    autoencoder_steps, steps = (
        SHORT_STEPS if command.short else (config.latents.train_steps, config.train.steps)
    )
    return replace(
        config,
        latents=replace(config.latents, train_steps=autoencoder_steps),
        train=replace(config.train, out=command.out, seed=command.seed, steps=steps, device="cpu"),
        sample=replace(config.sample, prompts=FIXED_PROMPTS),
    )


def _inside(config: Config, out: Path) -> Config:
    """The configuration with everything that the demo makes in its own folder."""
    data = replace(
        config.data, folder=str(out / "data" / "train"), heldout=str(out / "data" / "heldout"), demo=True
    )
    latents = replace(config.latents, folder=str(out / "latents"))
    return replace(config, data=data, latents=latents, train=replace(config.train, out=str(out)))


@contextmanager
def _stage(timings: dict[str, float], number: int) -> Iterator[None]:
    from tqdm import tqdm

    elapsed = sum(timings.values())
    tqdm.write(f"[{number + 1}/{len(STAGES)}] {STAGES[number]} ({elapsed:.0f} s so far)")
    started = time.perf_counter()
    yield
    timings[STAGES[number]] = time.perf_counter() - started


def draw_in_new_process(side: int, out: Path) -> dict[str, dict[str, Any]]:
    """Draws in fresh processes: the guided grid, and the colours from ∞ and from a finite σ.

    side  of the canvas in latent cells
    The finite level is the one that leaks the mean on this small canvas as much as 14.6 does at 1024² (N §2.3).
    """
    from refimpl.progress import shown
    from refimpl.sample.grids import scale_sigma_max

    finite = scale_sigma_max(SDXL_SIGMA_MAX, side, side, base=SDXL_LATENT_SIDE)
    colours = ["--prompts", *COLOUR_PROMPTS, "--seeds", str(COLOUR_SEEDS), "--guidance", "1"]
    jobs = {
        "guided": ["--guidance", "3.5"],
        "infinite": colours,
        "finite": [*colours, "--start-sigma", str(finite)],
    }
    drawn = {}
    for name, options in shown(jobs.items(), len(jobs), "samples", "grids"):
        folder = out / "samples" / name
        call = [sys.executable, "-m", "refimpl.sample", str(out), "--out", str(folder), *options]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"sampling in a new process failed ({' '.join(call)}):\n{done.stderr}")
        drawn[name] = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return drawn


def judge(
    rows: list[dict[str, Any]],
    psnr: list[float],
    samples: dict[str, dict[str, Any]],
    wanted_psnr: float,
) -> tuple[list[Criterion], dict[str, Any]]:
    """Compares the demo's figures with their targets; returns the verdicts and the numbers behind them."""
    from refimpl.report.run_page import Criterion

    losses = [row["heldout_loss"] for row in rows if row.get("heldout_loss") is not None]
    infinite, finite = (
        dict(zip(COLOUR_PROMPTS, samples[k]["mean_rgb"], strict=True)) for k in ("infinite", "finite")
    )
    black, white, red = (infinite[prompt] for prompt in COLOUR_PROMPTS)
    gap = _brightness(white) - _brightness(black)
    finite_gap = _brightness(finite["completely white"]) - _brightness(finite["completely black"])
    gap_ratio = finite_gap / gap if gap else math.nan
    loss_ratio = losses[-1] / losses[0] if losses else math.nan
    mean_psnr = sum(psnr) / len(psnr)
    checks = [
        (
            "autoencoder, mean PSNR on held-out images, dB",
            mean_psnr,
            f"≥ {wanted_psnr:g}",
            mean_psnr >= wanted_psnr,
        ),
        ("“completely black”, mean pixel", _brightness(black), "< 0.12", _brightness(black) < 0.12),
        ("“completely white”, mean pixel", _brightness(white), "> 0.88", _brightness(white) > 0.88),
        ("“completely red”, red", red[0], "> 0.75", red[0] > 0.75),
        ("“completely red”, green", red[1], "< 0.3", red[1] < 0.3),
        ("“completely red”, blue", red[2], "< 0.3", red[2] < 0.3),
        ("white − black, finite start as a share of ∞ start", gap_ratio, "≤ 0.7", gap_ratio <= 0.7),
        ("held-out v-loss, last as a share of first", loss_ratio, "< 0.5", loss_ratio < 0.5),
    ]
    criteria = [Criterion(name, float(value), wanted, bool(passed)) for name, value, wanted, passed in checks]
    measured = {
        "heldout_psnr_db": psnr,
        "heldout_loss": losses,
        "mean_rgb_from_infinity": infinite,
        "mean_rgb_from_finite_sigma": finite,
        "finite_sigma": samples["finite"]["start_sigma"],
    }
    return criteria, measured


def _brightness(rgb: list[float]) -> float:
    return sum(rgb) / 3
