"""The moving average and the batch of an autoencoder's training (S §2.4, App. J).

Autoencoders are trained with a small and with a large batch on as many pictures, and measured by PSNR and SSIM on
pictures that they have not seen: their averaged weights, and the weights of the last step, from the same training.

Predicted: the moving average helps with either batch (S App. J: in all settings). The effect of the batch is mixed
there, so no sign of it is predicted; it is shown beside.
"""

from pathlib import Path

from refimpl.autoencoder.decoder_measures import measure_decoder
from refimpl.autoencoder.training import EMA_DECAY
from refimpl.latents.config import LatentConfig
from refimpl.paper.trained.autoencoders.small_autoencoder import (
    ALONE,
    SIDE,
    picture_folder,
    pictures_of,
    trained_autoencoder,
)
from refimpl.paper.trained.experiment import Found

MEASURE = "autoencoder EMA and batch"
PICTURES_SEEN = 1920
BATCHES = (4, 16)
DECAYS = {"averaged": EMA_DECAY, "last": 0.0}
UNITS = {"psnr": "PSNR in dB", "ssim": "SSIM"}

PREDICTED = tuple(
    f"{unit} at batch {batch}, averaged weights less last" for batch in BATCHES for unit in UNITS.values()
)


def settings(batch: int) -> LatentConfig:
    """The training with a batch; all see as many pictures."""
    return LatentConfig(train_steps=PICTURES_SEEN // batch, train_batch=batch, train_size=SIDE)


def of_seed(seed: int, folder: Path) -> Found:
    """The effects on one seed's autoencoders, and the numbers that they are the differences of."""
    pictures = picture_folder(seed, folder)
    unseen = pictures_of(pictures, "heldout")
    effects, values = {}, {}
    for batch in BATCHES:
        measured = {}
        for name, decay in DECAYS.items():
            vae = trained_autoencoder(pictures, settings(batch), seed, decay, folder)
            measured[name] = measure_decoder(vae, unseen, SIDE, ALONE)
        for key, unit in UNITS.items():
            effects[f"{unit} at batch {batch}, averaged weights less last"] = (
                measured["averaged"][key] - measured["last"][key]
            )
            values |= {
                f"{unit} at batch {batch}, {name} weights": each[key] for name, each in measured.items()
            }
    for unit in UNITS.values():
        small, large = (values[f"{unit} at batch {batch}, averaged weights"] for batch in BATCHES)
        values[f"{unit} of averaged weights, batch {BATCHES[1]} less {BATCHES[0]}"] = large - small
    return {MEASURE: effects | values}
