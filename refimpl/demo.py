"""The main job end to end on a small data set, with a report and figures that it must reach.

images → index → buckets → autoencoder → scale-and-shift → UNet → checkpoint → (new process) samples → report.html
"""

import json
import math
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
import tyro
from PIL import Image
from tqdm import tqdm

import refimpl
from refimpl.data.demo_images import read_demo_manifest
from refimpl.data.demo_photographs import PHOTOGRAPHS, locate
from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.min_snr import POLICIES
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.errors import InputError
from refimpl.latents.scale_shift import NOVELAI_ANIME, ScaleShift
from refimpl.latents.vae import VAE
from refimpl.latents.welford import Welford
from refimpl.model.unet import UNet
from refimpl.report.html import Criterion, Grid, ReportContent, write_report
from refimpl.sample.grids import scale_sigma_max
from refimpl.train.autoencoder import bucket_batches, centre_crops, heldout_psnr, psnr_from_error
from refimpl.train.config import Config
from refimpl.train.data_command import mean_aspect_error
from refimpl.train.distributed import World
from refimpl.train.loop import train
from refimpl.train.out_folder import removed_if_empty, run_folder
from refimpl.train.prepare import frozen_parts, prepare, prepare_data, read_stage
from refimpl.train.presets import load_config
from refimpl.train.steps import StageData

COLOUR_PROMPTS = ("completely black", "completely white", "completely red")
FIXED_PROMPTS = (
    *COLOUR_PROMPTS, "completely blue", "completely green", "completely yellow",
    "red circle, white background", "blue square, yellow background", "photograph, cat",
)  # fmt: skip
SDXL_SIGMA_MAX = 14.6  # where the published schedule ends (N §2.2)
SDXL_LATENT_SIDE = 128  # of 1024² images, for which that σ was not enough (N §2.3)
COLOUR_SEEDS = 8
SHORT_STEPS = (600, 1100)  # of the autoencoder, of the UNet
WANTED_PSNR = {False: 24.0, True: 20.0}  # dB, by --short
STAGES = ("data set", "autoencoder and latent statistics", "training", "sampling", "report")


@dataclass(frozen=True)
class DemoCommand:
    """Prepares real photographs and drawn illustrations, trains on them, samples, and writes report.html.

    Exits with 1 when one of the figures is missed, and says which.
    """

    out: str = ""
    """folder for everything; empty for runs/demo-001, -002, …"""
    short: bool = False
    """fewer steps, for continuous integration; of the autoencoder 20 dB are wanted then instead of 24"""
    seed: int = 0
    """of everything that is drawn"""


def demo_command(arguments: list[str], program: str = "refimpl demo") -> None:
    """Runs the demo; leaves report.html, metrics.json, metrics.jsonl, the checkpoint and all samples."""
    command = tyro.cli(DemoCommand, args=arguments, prog=program)
    config = demo_config(command)
    world = World(0, 1, torch.device("cpu"))
    out = run_folder(config, "demo", world)
    config = _inside(config, out)
    print(f"demo in {out}: {len(STAGES)} stages, about {'3' if command.short else '6'} minutes on two cores")
    timings: dict[str, float] = {}

    with removed_if_empty(out, world), _stage(timings, 0):
        prepare_data(config)
        data = read_stage(config, config.all_stages()[-1])
        heldout = read_stage(config, replace(config.all_stages()[-1], folder=config.data.heldout))
    with _stage(timings, 1):
        vae, scale_shift, statistics = frozen_parts(config, data, world.device)
        psnr = heldout_psnr(vae, heldout.index, heldout.buckets, heldout.bucket_of, world.device)
    with _stage(timings, 2):
        train(config, out, prepare(config, out, world), world)
    with _stage(timings, 3):
        samples = draw_in_new_process(config, out)
    with _stage(timings, 4):
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        criteria, measured = judge(rows, psnr, samples, WANTED_PSNR[command.short])
        content = report_content(config, out, data, heldout, vae, scale_shift, statistics, samples, rows)
        content = replace(content, criteria=criteria)
    content = replace(content, timings=timings)
    write_report(out / "report.html", content)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    metrics = {
        "criteria": [asdict(criterion) for criterion in criteria],
        **measured,
        "seconds": timings,
        "peak_memory_bytes": peak,
        "environment": environment(),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    print(f"report: {out / 'report.html'}\nnumbers: {out / 'metrics.json'}")
    for criterion in criteria:
        verdict = "reached" if criterion.passed else "MISSED"
        print(f"  {verdict}: {criterion.name} {criterion.measured:.3f}, wanted {criterion.wanted}")
    if not all(criterion.passed for criterion in criteria):
        sys.exit(1)


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
    """Everything the demo makes lies in its own folder."""
    data = replace(
        config.data, folder=str(out / "data" / "train"), heldout=str(out / "data" / "heldout"), demo=True
    )
    latents = replace(config.latents, folder=str(out / "latents"))
    return replace(config, data=data, latents=latents, train=replace(config.train, out=str(out)))


@contextmanager
def _stage(timings: dict[str, float], number: int) -> Iterator[None]:
    elapsed = sum(timings.values())
    tqdm.write(f"[{number + 1}/{len(STAGES)}] {STAGES[number]} ({elapsed:.0f} s so far)")
    started = time.perf_counter()
    yield
    timings[STAGES[number]] = time.perf_counter() - started


def draw_in_new_process(config: Config, out: Path) -> dict[str, dict[str, Any]]:
    """Draws in fresh processes: the guided grid, and the colours from ∞ and from a finite σ.

    The finite level is the one that leaks the mean on this small canvas as much as 14.6 does at 1024² (N §2.3).
    """
    side = config.sample.height // config.vae.factor
    finite = scale_sigma_max(SDXL_SIGMA_MAX, side, side, base=SDXL_LATENT_SIDE)
    colours = ["--prompts", *COLOUR_PROMPTS, "--seeds", str(COLOUR_SEEDS), "--guidance", "1"]
    jobs = {
        "guided": ["--guidance", "3.5"],
        "infinite": colours,
        "finite": [*colours, "--start-sigma", str(finite)],
    }
    drawn = {}
    for name, options in tqdm(jobs.items(), desc="samples", unit="grid"):
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
    """The demo's figures against what they must be, and the numbers behind them."""
    losses = [row["heldout_loss"] for row in rows if row.get("heldout_loss") is not None]
    infinite, finite = (
        dict(zip(COLOUR_PROMPTS, samples[k]["mean_rgb"], strict=True)) for k in ("infinite", "finite")
    )
    black, white, red = (infinite[prompt] for prompt in COLOUR_PROMPTS)
    gap = _brightness(white) - _brightness(black)
    finite_gap = _brightness(finite["completely white"]) - _brightness(finite["completely black"])
    gap_ratio = finite_gap / gap if gap else math.nan
    loss_ratio = losses[-1] / losses[0] if losses else math.nan
    mean_psnr = float(np.mean(psnr))
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


def report_content(
    config: Config,
    out: Path,
    data: StageData,
    heldout: StageData,
    vae: VAE,
    scale_shift: ScaleShift,
    statistics: dict[str, torch.Tensor],
    samples: dict[str, dict[str, Any]],
    rows: list[dict[str, Any]],
) -> ReportContent:
    """Everything the report shows, but for verdicts and timings."""
    manifest = read_demo_manifest(out / "data")
    originals, rebuilt, psnr = _reconstructions(vae, heldout)
    standardised = Welford(vae.config.latent_channels)
    for images in centre_crops(data.index, bucket_batches(data.buckets, data.bucket_of, 16)):
        standardised.update(scale_shift.standardise(vae.encode(images)))
    policies = {
        policy: replace(
            DiffusionConfig(), loss_weight=policy, weight_floor=0.1 if policy == "floor" else 0.0
        ).loss_weights()
        for policy in POLICIES
    }
    finite = samples["finite"]["start_sigma"]
    counts = {split: sum(kinds.values()) for split, kinds in manifest.counts.items()}
    photographs = manifest.counts["train"]["photographs"]
    return ReportContent(
        title="refimpl demo: v-prediction with zero terminal SNR, end to end",
        summary=[
            f"Trained on {counts['train']} images ({photographs} cut from real photographs, the rest drawn) for "
            f"{config.train.steps} steps of {config.train.batch_size}; {counts['heldout']} images held out. "
            f"The UNet is SDXL's in shape, {sum(p.numel() for p in _unet_parameters(config)):,} parameters.",
        ],
        losses=rows,
        samples=[
            _grid(out, samples, "guided", "Fixed prompts, classifier-free guidance 3.5, native grid from σ = ∞"),
            _grid(out, samples, "infinite", "Colours from σ = ∞, no guidance", "The exact first step of N App. A.1."),
            _grid(
                out, samples, "finite", f"The same from σ = {finite:.3f}, no guidance",
                "14.6 scaled to this canvas (N §2.3): the starting noise's mean is taken for the picture's.",
            ),
        ],
        buckets=data.buckets,
        bucket_counts=np.bincount(data.bucket_of, minlength=len(data.buckets)).tolist(),
        mean_aspect_error=mean_aspect_error(data),
        schedules=(sdxl_schedule(), zero_terminal_snr(sdxl_schedule())),
        noised=Image.open(locate(PHOTOGRAPHS[0])).convert("RGB"),
        latents_before=(statistics["mean"], statistics["std"]),
        latents_after=(standardised.mean, standardised.std),
        latents_reference=(NOVELAI_ANIME.mean, NOVELAI_ANIME.std),
        weights=policies,
        weights_note=(
            f"This run trained with policy {config.diffusion.loss_weight!r}. MinSNR as written (paper) gives t = 999 "
            "no weight, so it never trains the step that zero terminal SNR adds."
        ),
        originals=originals,
        reconstructions=rebuilt,
        psnr=psnr,
        environment=environment(),
        licences=manifest.licences,
    )  # fmt: skip


def _grid(out: Path, samples: dict[str, dict[str, Any]], name: str, title: str, note: str = "") -> Grid:
    settings = samples[name]["settings"]
    images, captions = [], []
    for row, prompt in enumerate(settings["prompts"]):
        for number in range(settings["seeds"]):
            with Image.open(out / "samples" / name / f"prompt{row:02d}-{number:02d}.png") as image:
                images.append(np.asarray(image.convert("RGB")))
            captions.append(prompt)
    return Grid(title, images, captions, note, columns=settings["seeds"])


def _unet_parameters(config: Config) -> Iterator[torch.nn.Parameter]:
    with torch.device("meta"):
        return UNet(config.unet).parameters()


@torch.no_grad()
def _reconstructions(vae: VAE, heldout: StageData, count: int = 16):
    """Every k-th held-out image, the same through the autoencoder, and its PSNR."""
    originals, rebuilt, psnr = [], [], []
    chosen = np.linspace(0, len(heldout.index) - 1, count).round().astype(int)
    batches = [(heldout.buckets[heldout.bucket_of[item]], np.array([item])) for item in chosen]
    for images in centre_crops(heldout.index, batches):
        restored = vae.decode(vae.encode(images)).clamp(-1, 1)
        psnr.append(psnr_from_error(float((restored - images).square().mean())))
        for target, image in ((originals, images), (rebuilt, restored)):
            target.append(((image[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())
    return originals, rebuilt, psnr


def environment() -> dict[str, Any]:
    """Versions and machine, for reports and benchmark files."""
    return {
        "refimpl": refimpl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
