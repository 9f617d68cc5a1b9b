"""What the demo's report shows: the parts of ReportContent, filled from a finished run."""

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from PIL import Image

import refimpl
from refimpl.autoencoder.training import bucket_batches, centre_crops, psnr_from_error
from refimpl.data.demo.data_set import read_demo_manifest
from refimpl.data.demo.photographs import PHOTOGRAPHS, locate
from refimpl.diffusion.config import POLICIES, DiffusionConfig
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.latents.pixels import to_pixels
from refimpl.latents.scale_shift import NOVELAI_ANIME, ScaleShift
from refimpl.latents.vae import VAE
from refimpl.latents.welford import Welford
from refimpl.model.unet import UNet, UNetConfig
from refimpl.report.run_page import Grid, ReportContent
from refimpl.report.runs.read_run import embedded_series, read_run
from refimpl.run.config import Config
from refimpl.run.stage import StageData


def report_content(
    config: Config,
    out: Path,
    data: StageData,
    heldout: StageData,
    vae: VAE,
    scale_shift: ScaleShift,
    statistics: dict[str, torch.Tensor],
    samples: dict[str, dict[str, Any]],
) -> ReportContent:
    """Everything that the report shows, except for verdicts and timings."""
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
            f"The UNet is SDXL's in shape, {unet_size(config.unet):,} parameters.",
        ],
        series=embedded_series(read_run(out)),
        samples=[
            _grid(out, samples, "guided", "Fixed prompts, classifier-free guidance 3.5, native grid from σ = ∞"),
            _grid(out, samples, "infinite", "Colours from σ = ∞, no guidance", "The exact first step of N App. A.1."),
            _grid(
                out, samples, "finite", f"The same from σ = {finite:.3f}, no guidance",
                "14.6 scaled to this canvas (N §2.3): the network takes the starting noise's mean for the picture's.",
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


def unet_size(config: UNetConfig) -> int:
    """Parameters of a UNet."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(config).parameters())


@torch.no_grad()
def _reconstructions(vae: VAE, heldout: StageData, count: int = 16):
    """Every k-th held-out image, its reconstruction by the autoencoder, and its PSNR."""
    originals, rebuilt, psnr = [], [], []
    chosen = np.linspace(0, len(heldout.index) - 1, count).round().astype(int)
    batches = [(heldout.buckets[heldout.bucket_of[item]], np.array([item])) for item in chosen]
    for images in centre_crops(heldout.index, batches):
        restored = vae.decode(vae.encode(images)).clamp(-1, 1)
        psnr.append(psnr_from_error(float((restored - images).square().mean())))
        for target, image in ((originals, images), (rebuilt, restored)):
            target.append(to_pixels(image[0].permute(1, 2, 0)).numpy())
    return originals, rebuilt, psnr


def mean_aspect_error(data: StageData) -> float:
    """Mean |bucket aspect − image aspect|, aspect = width / height, as N prints it (§4.1.2, §4.1.3)."""
    aspects = data.index.widths / data.index.heights
    buckets = np.array([width / height for width, height in data.buckets])
    return float(np.abs(buckets[data.bucket_of] - aspects).mean())


def environment() -> dict[str, Any]:
    """Software versions and the machine, for reports and benchmark files."""
    return {
        "refimpl": refimpl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
