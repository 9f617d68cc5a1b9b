"""A decoder finetuned not to draw JPEG's artefacts (N §4.4).

An autoencoder is trained on pictures that JPEG has damaged. Then its decoder alone is finetuned: once on the same
damaged pictures and once on the clean ones, with equal settings and as many steps. Measured are clean pictures that
no network has seen: the blockiness of what is restored of them, and PSNR.

Predicted: finetuned on clean pictures, the decoder draws less of JPEG's blocks.
"""

from dataclasses import asdict, replace
from pathlib import Path

from refimpl.autoencoder.decoder import finetune_decoder
from refimpl.autoencoder.decoder_config import DecoderConfig
from refimpl.autoencoder.decoder_measures import measure_decoder
from refimpl.autoencoder.training import EMA_DECAY
from refimpl.latents.config import LatentConfig
from refimpl.latents.vae import VAE
from refimpl.paper.trained.autoencoders.small_autoencoder import (
    ALONE,
    SIDE,
    digest,
    picture_folder,
    pictures_of,
    trained_autoencoder,
)
from refimpl.paper.trained.experiment import Found

MEASURE = "decoder and JPEG"
QUALITY = 8  # of the JPEG compression
BEFORE = LatentConfig(train_steps=450, train_batch=8, train_size=SIDE)
FINETUNING = DecoderConfig(
    steps=300, batch_size=8, size=SIDE, learning_rate=1e-3, ema_decay=0.98, checkpoint_every=100
)

BLOCKS = "blockiness of what is restored, decoder finetuned on damaged pictures less on clean"
PREDICTED = (BLOCKS,)


def of_seed(seed: int, folder: Path) -> Found:
    """The effect on one seed's autoencoders, and the numbers that it is the difference of."""
    clean, damaged = picture_folder(seed, folder), picture_folder(seed, folder, QUALITY)
    unseen = pictures_of(clean, "heldout")
    before = trained_autoencoder(damaged, BEFORE, seed, EMA_DECAY, folder)
    measured = {"not finetuned": measure_decoder(before, unseen, SIDE, ALONE)}
    for name, pictures in {"on damaged pictures": damaged, "on clean pictures": clean}.items():
        measured[f"finetuned {name}"] = measure_decoder(
            finetuned(damaged, pictures, seed, folder), unseen, SIDE, ALONE
        )
    effect = (
        measured["finetuned on damaged pictures"]["blockiness"]
        - measured["finetuned on clean pictures"]["blockiness"]
    )
    found = {BLOCKS: effect}
    found |= {
        f"blockiness of what is restored, {name}": each["blockiness"] for name, each in measured.items()
    }
    found["blockiness of the originals"] = measured["not finetuned"]["blockiness of the originals"]
    return {MEASURE: found | {f"PSNR in dB, {name}": each["psnr"] for name, each in measured.items()}}


def finetuned(first: Path, then: Path, seed: int, folder: Path) -> VAE:
    """The autoencoder of the pictures `first` with its decoder finetuned on the pictures `then`.

    A run that was cut off goes on from its last checkpoint below `folder`, and one that is done is only read.
    """
    vae = trained_autoencoder(first, BEFORE, seed, EMA_DECAY, folder)
    config = replace(FINETUNING, seed=seed)
    content = {"first": first.name, "before": asdict(BEFORE), "then": then.name, "config": asdict(config)}
    run = folder / f"decoder-{digest(content)}"
    return finetune_decoder(vae, pictures_of(then, "train"), config, run, ALONE)
