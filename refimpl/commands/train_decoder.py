"""`refimpl train-decoder`: an autoencoder's decoder finetuned on images, its encoder untouched (N §4.4, S §2.4)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from refimpl.autoencoder.decoder_config import DecoderConfig
from refimpl.commands.terminal import parsed
from refimpl.errors import InputError
from refimpl.tables import parsed_json, to_table

if TYPE_CHECKING:
    from refimpl.data.index.data_set import Index
    from refimpl.interop.checkpoint import Checkpoint
    from refimpl.latents.vae import VAE

SETTINGS = "config.json"


@dataclass(frozen=True)
class TrainDecoderCommand:
    """Finetunes the decoder of an autoencoder and writes the whole autoencoder as one file that other tools load.

    Several processes (torchrun --no-python --nproc-per-node=N refimpl train-decoder …) share each batch. A bad image
    is named in quarantine.jsonl and replaced; more than 1 % of them end the run.
    """

    weights: Annotated[str, tyro.conf.Positional]
    """Autoencoder to start from: its own safetensors file, or a single-file checkpoint or diffusers folder that
    contains it."""
    folder: Path
    """Images to train on."""
    out: Path
    """Run folder to make: it receives checkpoints, metrics.jsonl and, at the end, vae.safetensors."""
    heldout: str = ""
    """Images to measure on, before and after; empty for those of `folder`."""
    perceptual: str = ""
    """Feature network for decoder.perceptual_weight: VGG-16 as .safetensors with torchvision's names, or any network
    as TorchScript (see --trust-perceptual); empty for none."""
    trust_perceptual: bool = False
    """Run the code that a TorchScript file brings: do so only for a file that you trust."""
    allow_outside: bool = False
    """Also read images that links in `folder` and `heldout` lead to outside of them."""
    resume: bool = False
    """Continue the run in `out`."""
    device: str = "auto"
    """Device to train on: auto, cpu or cuda."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """How the decoder is trained."""


def train_decoder_command(arguments: list[str], program: str = "refimpl train-decoder") -> None:
    """Reads the autoencoder and the images, finetunes, measures before and after, writes the autoencoder."""
    command = parsed(TrainDecoderCommand, arguments, program)
    from refimpl.autoencoder.decoder import check_fits, finetune_decoder, write_row
    from refimpl.autoencoder.decoder_losses import load_features
    from refimpl.autoencoder.decoder_measures import measure_decoder, without_jpeg_blocks
    from refimpl.data.images.decode import BadImage
    from refimpl.data.index.data_set import read_folder
    from refimpl.interop.network.architecture import architecture_of, noted
    from refimpl.interop.single_file import with_scale_shift
    from refimpl.latents.vae import VAE
    from refimpl.run.world import join_world, leave_world, lost_peers_named
    from refimpl.storage import safetensors_file
    from refimpl.storage.streaming import load_into
    from refimpl.train.quarantine import Quarantine

    config, run = command.decoder, command.out
    checkpoint = read_autoencoder(command.weights)
    architecture = architecture_of(checkpoint, command.weights)
    assert checkpoint.vae is not None
    assert architecture.vae is not None
    vae = VAE(architecture.vae)
    load_into(vae, checkpoint.vae, command.weights)
    world = join_world(command.device)
    with lost_peers_named(world):
        features = None
        if command.perceptual:
            path = Path(command.perceptual)
            features = load_features(path, config.size, world.device, command.trust_perceptual)
        index = read_folder(str(command.folder), allow_outside=command.allow_outside)
        heldout = index
        if command.heldout:
            heldout = read_folder(command.heldout, allow_outside=command.allow_outside)
        if config.max_blockiness:
            index, left_out = without_jpeg_blocks(index, config.max_blockiness, world)
            for name, value in left_out.items() if world.is_main else ():
                print(f"left out {name}: blockiness {value:.2f} is above {config.max_blockiness}")
        check_fits(vae, index, config, features, run, world)
        world.on_main(lambda: _make_or_check(command, _told_by(vae, index)))
        notes = Quarantine(run, world)

        def measured(vae: VAE) -> dict[str, float]:
            bad: list[BadImage] = []
            values = measure_decoder(vae, heldout, config.size, world, bad)
            notes.add(bad, len(heldout))
            notes.share()
            return values

        vae.to(world.device)
        before = measured(vae)
        vae = finetune_decoder(vae, index, config, run, world, features, notes)
        after = measured(vae)

        def finish() -> None:
            for when, step, values in (("before", 0, before), ("after", config.steps, after)):
                write_row(run, step, values)
                print(f"{when:<6} " + "   ".join(f"{name} {value:.4f}" for name, value in values.items()))
            state = {name: value.cpu().contiguous() for name, value in vae.state_dict().items()}
            finished = run / "vae.safetensors"
            # Without the prefix that a whole model's file has, as the VAE loaders of other tools expect.
            metadata = noted(with_scale_shift(checkpoint.metadata, checkpoint.scale_shift), architecture)
            safetensors_file.write(finished, state, metadata)
            print(f"wrote {finished}")

        world.on_main(finish)
    leave_world(world)


def read_autoencoder(weights: str) -> Checkpoint:
    """Reads the autoencoder and its scale-and-shift from a file or folder of any format.

    Raises InputError when it cannot be read, or holds no autoencoder.
    """
    from refimpl.interop import diffusers_folder, single_file

    path = Path(weights)
    checkpoint = diffusers_folder.load(path) if path.is_dir() else single_file.load(path)
    if checkpoint.vae is None:
        raise InputError(f"{weights} holds no autoencoder; name its safetensors file")
    return replace(checkpoint, unet=None, text_l=None, text_g=None, other={})


def _told_by(vae: VAE, index: Index) -> dict[str, str | int]:
    """Identifies the autoencoder and the images that a run began with, for when it is resumed."""
    from refimpl.run.data_digest import data_digest
    from refimpl.storage.shards import digest

    described = data_digest(index)
    return {
        "weights (SHA-256)": digest(vae.state_dict()),
        "images": described["images"],
        "ids (SHA-256)": described["ids"],
        "sizes (SHA-256)": described["sizes"],
    }


def _make_or_check(command: TrainDecoderCommand, told_by: dict[str, str | int]) -> None:
    """Makes the run folder, or checks that the one to be resumed has these settings, except for `steps`."""
    from refimpl.storage.atomic import replace_text

    run, table = command.out, to_table(command.decoder) | told_by
    settings = run / SETTINGS
    if command.resume:
        if not settings.is_file():
            raise InputError(f"--resume: {run} is not a run of train-decoder; name the folder with --out")
        try:
            saved = dict(parsed_json(settings.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{settings} cannot be read ({error}); choose another --out") from error
        changed = [
            key for key in sorted(saved | table) if saved.get(key) != table.get(key) and key != "steps"
        ]
        if changed:
            listing = ", ".join(f"{key} was {saved.get(key)!r}, now {table.get(key)!r}" for key in changed)
            raise InputError(
                f"--resume: {run} was begun with other settings: {listing}; restore them, or start a new run"
            )
        return
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"--out {run} exists; choose another folder, or --resume")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {run} cannot be made: {error.strerror}; choose another folder") from error
    replace_text(settings, json.dumps(table, indent=1) + "\n")
