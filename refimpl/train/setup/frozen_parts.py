"""The frozen autoencoder and scale-and-shift of a run: read, trained and measured, or its start's (N App. B).

A UNet knows only the latents that it was trained on. So a run that starts from a checkpoint takes that checkpoint's
autoencoder, whatever a preset would have it train or read, unless the settings name a file of weights.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from refimpl.autoencoder.training import SCALE_SHIFTS, measure_scale_shift, train_autoencoder
from refimpl.errors import InputError
from refimpl.file_kinds import named_kind
from refimpl.interop.any_checkpoint import Opened
from refimpl.interop.run.run_folder import load_autoencoder
from refimpl.latents.config import LatentConfig
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.run.config import Config
from refimpl.run.stage import StageData
from refimpl.storage import committed
from refimpl.storage.streaming import load_state
from refimpl.tables import to_table
from refimpl.train.setup.init_from import say_scale_shift, start_vae


def frozen_parts(
    config: Config, data: StageData, device: torch.device, start: Opened | None = None
) -> tuple[VAE, ScaleShift, dict[str, Tensor]]:
    """The autoencoder and its scale-and-shift: read, the start's, or made from the data and kept in `latents.folder`.

    start    what train.init_from names: its autoencoder, if it has one, comes before `latents.folder` and training
    returns  both, and the measured statistics (count, mean, std) where they were measured
    """
    settings, source = config.latents, config.train.init_from
    folder = Path(settings.folder) if settings.folder else None
    made_from = _made_from(config.vae, settings, config.train.seed, data)
    chosen = _chosen_scale_shift(settings.scale_shift, config.vae.latent_channels, start)
    statistics: dict[str, Tensor] = {}
    of_start = start_vae(start, config.vae, source) if start is not None and not settings.weights else None
    if settings.weights:
        vae = load_autoencoder(Path(settings.weights), config.vae)
    elif of_start is not None:
        vae = of_start
    elif folder and (folder / committed.MANIFEST).is_file():
        contents = committed.read(folder)
        if contents.documents["made_from"] != made_from:
            raise InputError(
                f"latents.folder {folder} was made with different data or settings; delete it or name another folder"
            )
        vae = VAE(config.vae)
        load_state(vae, contents.tensors["autoencoder"], str(folder))
        measured = ScaleShift.from_json(json.dumps(contents.documents["scale_shift"]))
        return vae.eval().requires_grad_(False), chosen or measured, contents.tensors["statistics"]
    elif folder and folder.exists():
        raise InputError(
            f"latents.folder {folder} exists but holds no autoencoder; delete it or name another"
        )
    elif settings.train_steps:
        vae = train_autoencoder(data.index, config.vae, settings, config.train.seed, device)
    else:
        raise InputError(
            "no autoencoder: give latents.weights (a safetensors file), or latents.train_steps to train one, or "
            "start from a checkpoint that has one (train.init_from)"
        )
    if chosen is None:
        chosen, welford = measure_scale_shift(
            vae.to(device), data.index, data.buckets, data.bucket_of, device
        )
        statistics = {"count": torch.tensor(welford.count), "mean": welford.mean, "std": welford.std}
    if start is not None:
        say_scale_shift(start, chosen)
    if folder and settings.train_steps and not settings.weights and of_start is None:
        tensors = {"autoencoder": vae.state_dict(), "statistics": statistics}
        documents = {"scale_shift": json.loads(chosen.to_json()), "made_from": made_from}
        committed.write(folder, tensors, documents)
    return vae.cpu(), chosen, statistics


def _chosen_scale_shift(choice: str, channels: int, start: Opened | None) -> ScaleShift | None:
    """The scale-and-shift that the settings name; None where it is to be measured."""
    if choice == "measure":
        return None
    if choice == "checkpoint":
        if start is None:
            raise InputError(
                "latents.scale_shift 'checkpoint' takes what train.init_from was trained with; name a checkpoint, or "
                "another scale_shift"
            )
        chosen = start.checkpoint.scale_shift
    elif choice in SCALE_SHIFTS:
        chosen = SCALE_SHIFTS[choice]
    else:
        try:
            chosen = ScaleShift.from_json(Path(choice).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            advice = "give the .json file that `refimpl stats` writes"
            problem = named_kind(choice, "a scale-and-shift", advice)
            raise InputError(f"latents.scale_shift {problem or f'{choice} is not text; {advice}'}") from error
        except OSError as error:
            raise InputError(
                f"latents.scale_shift {choice!r} is neither measure, checkpoint, {', '.join(SCALE_SHIFTS)} nor a "
                "readable file"
            ) from error
        except InputError as error:
            raise InputError(f"latents.scale_shift {choice!r} is not a preset: {error}") from error
    if chosen.channels != channels:
        raise InputError(
            f"latents.scale_shift {choice!r} has {chosen.channels} channels, but vae.latent_channels is "
            f"{channels}; use measure, or statistics of this autoencoder"
        )
    return chosen


def _made_from(vae: VAEConfig, latents: LatentConfig, seed: int, data: StageData) -> dict[str, object]:
    """What the trained autoencoder and its statistics depend on."""
    buckets = [list(bucket) for bucket in data.buckets]
    return {
        "vae": to_table(vae),
        "latents": {key: value for key, value in to_table(latents).items() if key != "folder"},
        "seed": seed,
        "ids": list(data.index.ids),
        "buckets": buckets,
    }
