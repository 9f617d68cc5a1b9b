"""Everything before the first step: run folder, data set, autoencoder, scale-and-shift, text towers, UNet."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from refimpl.data.buckets import assign
from refimpl.data.demo_images import write_demo_images
from refimpl.data.index import read_folder
from refimpl.data.loader import ImageCache
from refimpl.data.tags import TagCounts, count_tags, dataset_weights
from refimpl.diffusion.philox import sample_id
from refimpl.errors import InputError
from refimpl.interop import committed
from refimpl.interop.run_folder import (
    CONFIG,
    Model,
    committed_steps,
    find_checkpoint,
    load_autoencoder,
    load_components,
    save_components,
    write_config,
)
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.vae import VAE
from refimpl.model.unet import UNet
from refimpl.tables import to_table
from refimpl.text.states import TextStates
from refimpl.train.autoencoder import SCALE_SHIFTS, measure_scale_shift, train_autoencoder
from refimpl.train.config import Config, Stage
from refimpl.train.distributed import World
from refimpl.train.steps import StageData

# What a resumed run may change: everything else defines the run.
CHANGEABLE = {
    "train.out", "train.resume", "train.steps", "train.device", "train.checkpoint_every", "train.keep_checkpoints",
    "train.validate_every", "train.sample_every", "train.log_every", "train.tensorboard", "train.wandb_project",
    "data.workers",
}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """What the loop works with."""

    model: Model
    text_states: TextStates
    stages: list[StageData]
    heldout: StageData | None


def run_folder(config: Config, label: str, world: World) -> Path:
    """Makes the run folder on rank 0, or checks the one to be resumed, and returns it on every rank.

    Raises InputError when `train.out` holds anything and `train.resume` is off, when there is nothing to resume, or
    when the run to be resumed was made with other settings (naming each).
    """
    problem, out = "", config.train.out
    if world.is_main:
        try:
            out = str(_resumed(config) if config.train.resume else _fresh(config, label))
        except InputError as error:
            problem = str(error)
    problem, out = world.share(problem), world.share(out)
    if problem:
        raise InputError(problem)
    return Path(out)


def _fresh(config: Config, label: str) -> Path:
    if config.train.out:
        run = Path(config.train.out)
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            what = "another run" if (run / CONFIG).exists() else "other files"
            raise InputError(
                f"train.out {run} holds {what}; choose an empty folder"
                + (", or continue that run with --train.resume" if (run / CONFIG).exists() else "")
            )
    else:
        number = 1
        while (run := Path("runs") / f"{label}-{number:03d}").exists():
            number += 1
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"train.out {run} cannot be made: {error.strerror}") from error
    return run


def _resumed(config: Config) -> Path:
    run = Path(config.train.out)
    if not config.train.out or not (run / CONFIG).is_file():
        raise InputError(
            f"train.resume: {config.train.out or 'train.out'!r} is no run folder; name one with --train.out"
        )
    saved, wanted = _flat(json.loads((run / CONFIG).read_text(encoding="utf-8"))), _flat(to_table(config))
    changed = [
        key for key in sorted(saved | wanted) if saved.get(key) != wanted.get(key) and key not in CHANGEABLE
    ]
    if changed:
        listing = "\n  ".join(
            f"{key}: the run has {saved.get(key)!r}, now {wanted.get(key)!r}" for key in changed
        )
        raise InputError(f"train.resume: {run} was made with other settings:\n  {listing}")
    steps = committed_steps(run)
    if steps and steps[-1] >= config.train.steps:
        raise InputError(
            f"train.resume: {run} is at step {steps[-1]} already; raise train.steps {config.train.steps}"
        )
    return run


def _flat(table: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def prepare(config: Config, run: Path, world: World) -> Prepared:
    """Reads the data, gets or makes the frozen parts, builds the UNet; rank 0 makes what the others then read."""
    if world.is_main:
        prepare_data(config)
    world.barrier()
    stages = [read_stage(config, stage) for stage in config.all_stages()]
    heldout = read_stage(config, _heldout_stage(config)) if config.data.heldout else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)  # initial weights; nothing else draws from the global generator
        unet = UNet(config.unet, config.train.activation_checkpointing)
    if config.train.init_from:
        source = find_checkpoint(Path(config.train.init_from))
        committed.load_state(
            unet, committed.read(source, {"ema"}).tensors["ema"], str(source / "ema.safetensors")
        )
    if world.is_main and not (run / "components").exists():
        vae, scale_shift, _ = frozen_parts(config, stages[-1], world.device)
        save_components(
            run, Model(unet, vae, scale_shift, *config.text.load(), config.text, config.diffusion)
        )
        write_config(run, to_table(config))
    world.barrier()
    vae, scale_shift, towers = load_components(run, config.vae)
    model = Model(unet, vae, scale_shift, *towers, config.text, config.diffusion).to(world.device)
    states = TextStates(towers, config.text.pooling, config.text.cached_prompts)
    return Prepared(model, states, stages, heldout)


def prepare_data(config: Config) -> None:
    """Draws the demonstration data set where `data.demo` asks for it and the folder is not there."""
    folder = Path(config.data.folder)
    if config.data.demo and not folder.exists():
        bar = tqdm(desc="demo images", unit="image", dynamic_ncols=True)

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        write_demo_images(folder.parent, progress=progress)
        bar.close()


def read_stage(config: Config, stage: Stage) -> StageData:
    """Indexes a stage's folder, assigns its images to the stage's buckets and weighs them by their tags."""
    if not stage.folder:
        raise InputError("data.folder is empty; name a folder of images with .txt or .caption sidecars")
    index = read_folder(stage.folder, tag_classes=config.data.tag_classes)
    for bad in index.quarantined:
        tqdm.write(f"left out: {bad}")
    buckets = stage.buckets.sizes()
    bucket_of, error = assign(index.widths, index.heights, buckets, metric=config.data.aspect_metric)
    if config.data.max_aspect_error:
        kept = np.flatnonzero(error <= config.data.max_aspect_error)
        for item in np.flatnonzero(error > config.data.max_aspect_error):
            size = f"{index.widths[item]}×{index.heights[item]}"
            tqdm.write(f"pruned {index.paths[item]}: {size} is {error[item]:.3f} from the nearest bucket")
        index, bucket_of = index.take(kept), bucket_of[kept]
    weights = np.ones(len(index))
    if config.tag_weights.enabled:
        settings = config.tag_weights
        counts = count_tags(index.tags, TagCounts(settings.beta, settings.least, settings.most))
        weights = dataset_weights(index.tags, counts)
    draw_ids = torch.tensor([sample_id(name) for name in index.ids], dtype=torch.int64)
    weight_table = torch.tensor(weights, dtype=torch.float32)
    cache = ImageCache(config.data.cache_megabytes * 2**20) if config.data.cache_megabytes else None
    return StageData(stage, index, buckets, bucket_of, draw_ids, weight_table, cache)


def frozen_parts(
    config: Config, data: StageData, device: torch.device
) -> tuple[VAE, ScaleShift, dict[str, Tensor]]:
    """The autoencoder and its scale-and-shift: read, or made from the data and kept in `latents.folder`.

    returns  both, and the measured statistics (count, mean, std) where they were measured
    """
    settings, device_vae = config.latents, None
    folder = Path(settings.folder) if settings.folder else None
    statistics: dict[str, Tensor] = {}
    if settings.weights:
        device_vae = load_autoencoder(Path(settings.weights), config.vae)
    elif folder and (folder / committed.MANIFEST).is_file():
        contents = committed.read(folder)
        if contents.documents["made_from"] != _made_from(config, data):
            raise InputError(
                f"latents.folder {folder} was made with other data or settings; delete it or name another folder"
            )
        device_vae = VAE(config.vae)
        committed.load_state(device_vae, contents.tensors["autoencoder"], str(folder))
        device_vae.eval().requires_grad_(False)
        return (
            device_vae,
            ScaleShift.from_json(json.dumps(contents.documents["scale_shift"])),
            contents.tensors["statistics"],
        )
    elif settings.train_steps:
        device_vae = train_autoencoder(data.index, config.vae, settings, config.train.seed, device)
    else:
        raise InputError(
            "no autoencoder: give latents.weights (a safetensors file), or latents.train_steps to train one"
        )
    scale_shift = _scale_shift(config, device_vae.to(device), data, device, statistics)
    if folder and not settings.weights:
        tensors = {"autoencoder": device_vae.state_dict(), "statistics": statistics}
        documents = {"scale_shift": json.loads(scale_shift.to_json()), "made_from": _made_from(config, data)}
        committed.write(folder, tensors, documents)
    return device_vae.cpu(), scale_shift, statistics


def _scale_shift(
    config: Config, vae: VAE, data: StageData, device: torch.device, statistics: dict[str, Tensor]
) -> ScaleShift:
    choice = config.latents.scale_shift
    if choice in SCALE_SHIFTS:
        return SCALE_SHIFTS[choice]
    if choice == "measure":
        scale_shift, welford = measure_scale_shift(vae, data.index, data.buckets, data.bucket_of, device)
        statistics |= {"count": torch.tensor(welford.count), "mean": welford.mean, "std": welford.std}
        return scale_shift
    try:
        return ScaleShift.from_json(Path(choice).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"latents.scale_shift {choice!r} is neither measure, {', '.join(SCALE_SHIFTS)} nor a readable file"
        ) from error


def _made_from(config: Config, data: StageData) -> dict[str, object]:
    """What the trained autoencoder and its statistics depend on."""
    table = to_table(config)
    latents = {key: value for key, value in table["latents"].items() if key != "folder"}
    buckets = [list(bucket) for bucket in data.buckets]
    return {
        "vae": table["vae"],
        "latents": latents,
        "seed": config.train.seed,
        "ids": data.index.ids,
        "buckets": buckets,
    }


def _heldout_stage(config: Config) -> Stage:
    return replace(config.all_stages()[-1], folder=config.data.heldout)
