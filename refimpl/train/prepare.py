"""Everything before the first step: data set, autoencoder, scale-and-shift, text towers, UNet."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from refimpl.data.buckets import assign_and_prune
from refimpl.data.demo_images import write_demo_images
from refimpl.data.index import read_source
from refimpl.data.loader import ImageCache
from refimpl.data.scores import take_scores
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
    load_base,
    load_components,
    save_components,
    write_config,
)
from refimpl.latents.cache import LatentCache
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.vae import VAE
from refimpl.model.unet import UNet
from refimpl.ops import load_ops
from refimpl.tables import to_table
from refimpl.text.cached_states import CachedTextStates
from refimpl.text.image_tower import load_image_tower
from refimpl.text.states import TextStates
from refimpl.train.autoencoder import SCALE_SHIFTS, measure_scale_shift, train_autoencoder
from refimpl.train.cached_stage import (
    cached_text,
    check_encoder,
    find_latents,
    open_cache,
    without_quarantined,
)
from refimpl.train.config import Config, Stage
from refimpl.train.distributed import World
from refimpl.train.log import check_loggers
from refimpl.train.steps import StageData, plan_stage
from refimpl.train.trainable import Part, make_trainable


@dataclass(frozen=True)
class Prepared:
    """What the loop works with."""

    model: Model
    parts: list[Part]
    text_states: TextStates | CachedTextStates
    stages: list[StageData]
    heldout: StageData | None


def prepare(config: Config, run: Path, world: World) -> Prepared:
    """Reads the data, gets or makes the frozen parts, builds the UNet; rank 0 makes what the others then read.

    Raises InputError, before anything is written to the run folder, for settings that this machine or these images
    cannot fulfil. A run that fails here leaves the folder as it was.
    """
    load_ops(config.train.backend)
    check_loggers(config)
    world.on_main(lambda: prepare_data(config))
    cache = open_cache(config)
    stages = [read_stage(config, stage, cache, world) for stage in config.all_stages()]
    heldout = read_stage(config, _heldout_stage(config)) if config.data.heldout else None
    for data in stages:
        plan_stage(config, data, 0, world)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)  # initial weights; nothing else draws from the global generator
        unet = UNet(config.unet, config.train.activation_checkpointing)
    if config.train.init_from and not committed_steps(run):
        source = find_checkpoint(Path(config.train.init_from))
        committed.load_state(
            unet, committed.read(source, {"ema"}).tensors["ema"], str(source / "ema.safetensors")
        )
    world.on_main(lambda: _write_frozen_parts(config, run, stages[-1], unet, world.device))
    if config.lora.rank:
        load_base(run, unet)
    model = load_components(run, unet, config.vae, config.text, config.diffusion).to(world.device)
    parts = make_trainable(model, config)
    towers = (model.tokenizer, model.encoder_l, model.encoder_g)
    states = TextStates(towers, config.text.pooling, config.text.cached_prompts, config.text.is_trained)
    if cache is not None:
        check_encoder(cache, model.vae, config.data.cache)
        states = cached_text(config, stages, towers, states, world)
    return Prepared(model, parts, states, stages, heldout)


def _write_frozen_parts(config: Config, run: Path, data: StageData, unet: UNet, device: torch.device) -> None:
    """Commits the settings and the components of a run that has none; both, or neither."""
    if (run / "components").exists():
        return
    towers = config.text.load()  # fails at once, the autoencoder may take hours
    image_folder = config.image_prompt.folder
    image_tower = load_image_tower(image_folder, config.text.pooled_dim) if image_folder else None
    vae, scale_shift, _ = frozen_parts(config, data, device)
    model = Model(unet, vae, scale_shift, *towers, config.text, config.diffusion, image_tower)
    is_new = not (run / CONFIG).exists()
    if is_new:
        write_config(run, to_table(config))
    try:
        save_components(run, model, with_unet=config.lora.rank > 0)
    except InputError:
        if is_new:
            (run / CONFIG).unlink()
        raise


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


def read_stage(
    config: Config, stage: Stage, cache: LatentCache | None = None, world: World | None = None
) -> StageData:
    """Indexes a stage's folder, assigns its images to the stage's buckets and weighs them by their tags.

    cache  its latents take the place of the images, which must fit them; given with the world
    """
    if not stage.folder:
        raise InputError("data.folder is empty; name a folder of images with .txt or .caption sidecars")
    use_scores = config.text.vector == "score"
    classes = (*config.data.tag_classes, *([config.data.score_class] if use_scores else []))
    index = read_source(stage.folder, classes)
    for bad in index.quarantined:
        tqdm.write(f"left out: {bad}")
    index = without_quarantined(cache, index)
    buckets = stage.buckets.sizes()
    limit = config.data.max_aspect_error or math.inf
    assigned = assign_and_prune(index.widths, index.heights, buckets, config.data.aspect_metric, limit)
    for item in np.flatnonzero(assigned.pruned):
        size = f"{index.widths[item]}×{index.heights[item]}"
        tqdm.write(
            f"pruned {index.paths[item]}: {size} is {assigned.error[item]:.3f} from the nearest bucket"
        )
    kept = np.flatnonzero(~assigned.pruned)
    index, bucket_of = index.take(kept), assigned.index[kept]
    scores = None
    if use_scores:
        index, values = take_scores(index, config.data.score_class, config.data.default_score)
        scores = torch.from_numpy(values)
    weights = np.ones(len(index))
    if config.tag_weights.enabled:
        settings = config.tag_weights
        counts = count_tags(index.tags, TagCounts(settings.beta, settings.least, settings.most))
        weights = dataset_weights(index.tags, counts)
    draw_ids = torch.tensor([sample_id(name) for name in index.ids], dtype=torch.int64)
    weight_table = torch.tensor(weights, dtype=torch.float32)
    images = ImageCache(config.data.cache_megabytes * 2**20) if config.data.cache_megabytes else None
    data = StageData(stage, index, buckets, bucket_of, draw_ids, weight_table, scores, images)
    if cache is None or world is None:
        return data
    return replace(data, latents=find_latents(cache, data, config.data.cache, world))


def frozen_parts(
    config: Config, data: StageData, device: torch.device
) -> tuple[VAE, ScaleShift, dict[str, Tensor]]:
    """The autoencoder and its scale-and-shift: read, or made from the data and kept in `latents.folder`.

    returns  both, and the measured statistics (count, mean, std) where they were measured
    """
    settings, folder = config.latents, Path(config.latents.folder) if config.latents.folder else None
    chosen = _chosen_scale_shift(config)
    statistics: dict[str, Tensor] = {}
    if settings.weights:
        vae = load_autoencoder(Path(settings.weights), config.vae)
    elif folder and (folder / committed.MANIFEST).is_file():
        contents = committed.read(folder)
        if contents.documents["made_from"] != _made_from(config, data):
            raise InputError(
                f"latents.folder {folder} was made with other data or settings; delete it or name another folder"
            )
        vae = VAE(config.vae)
        committed.load_state(vae, contents.tensors["autoencoder"], str(folder))
        scale_shift = ScaleShift.from_json(json.dumps(contents.documents["scale_shift"]))
        return vae.eval().requires_grad_(False), scale_shift, contents.tensors["statistics"]
    elif folder and folder.exists():
        raise InputError(
            f"latents.folder {folder} exists and holds no autoencoder; delete it or name another"
        )
    elif settings.train_steps:
        vae = train_autoencoder(data.index, config.vae, settings, config.train.seed, device)
    else:
        raise InputError(
            "no autoencoder: give latents.weights (a safetensors file), or latents.train_steps to train one"
        )
    if chosen is None:
        chosen, welford = measure_scale_shift(
            vae.to(device), data.index, data.buckets, data.bucket_of, device
        )
        statistics = {"count": torch.tensor(welford.count), "mean": welford.mean, "std": welford.std}
    if folder and not settings.weights:
        tensors = {"autoencoder": vae.state_dict(), "statistics": statistics}
        documents = {"scale_shift": json.loads(chosen.to_json()), "made_from": _made_from(config, data)}
        committed.write(folder, tensors, documents)
    return vae.cpu(), chosen, statistics


def _chosen_scale_shift(config: Config) -> ScaleShift | None:
    """The scale-and-shift that the settings name; None where it is to be measured."""
    choice = config.latents.scale_shift
    if choice == "measure":
        return None
    if choice in SCALE_SHIFTS:
        chosen = SCALE_SHIFTS[choice]
    else:
        try:
            chosen = ScaleShift.from_json(Path(choice).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"latents.scale_shift {choice!r} is neither measure, {', '.join(SCALE_SHIFTS)} nor a readable file"
            ) from error
        except InputError as error:
            raise InputError(f"latents.scale_shift {choice!r} is not a preset: {error}") from error
    if chosen.channels != config.vae.latent_channels:
        raise InputError(
            f"latents.scale_shift {choice!r} has {chosen.channels} channels, vae.latent_channels is "
            f"{config.vae.latent_channels}; use measure, or statistics of this autoencoder"
        )
    return chosen


def _made_from(config: Config, data: StageData) -> dict[str, object]:
    """What the trained autoencoder and its statistics depend on."""
    table = to_table(config)
    latents = {key: value for key, value in table["latents"].items() if key != "folder"}
    buckets = [list(bucket) for bucket in data.buckets]
    return {
        "vae": table["vae"],
        "latents": latents,
        "seed": config.train.seed,
        "ids": list(data.index.ids),
        "buckets": buckets,
    }


def _heldout_stage(config: Config) -> Stage:
    return replace(config.all_stages()[-1], folder=config.data.heldout)
