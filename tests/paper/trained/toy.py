"""Every experiment at the size of a toy: the same code on few pictures, for two steps."""

from functools import partial

from refimpl.latents.config import LatentConfig
from refimpl.paper.trained import small_figures, small_measures, small_training
from refimpl.paper.trained.autoencoders import decoder_and_jpeg, ema_and_batch, small_autoencoder
from refimpl.paper.trained.conditions import (
    bucketed_crops,
    crop_conditioning,
    size_conditioning,
    tag_weights,
)
from refimpl.paper.trained.recipe import (
    adaptation,
    factorial,
    min_snr_policies,
    offset_noise,
    refiner,
    scale_and_shift,
)
from refimpl.paper.trained.small_training import SmallRun
from refimpl.sample.config import SampleConfig

STEPS, BATCH = 2, 4
MODULES = (
    small_figures, bucketed_crops, crop_conditioning, size_conditioning, tag_weights, adaptation, factorial,
    min_snr_policies, offset_noise, refiner, scale_and_shift, decoder_and_jpeg, ema_and_batch,
)  # fmt: skip
SMALLER = {
    "STEPS": STEPS,
    "BATCH": BATCH,
    "IMAGES": 1,
    "MILESTONES": (1, 2),
    "PICTURES_SEEN": 16,
}


def shrink(monkeypatch):
    """Shrinks every experiment for one test."""
    monkeypatch.setattr(small_training, "PICTURES", 16)
    monkeypatch.setattr(small_measures, "HELD_OUT", 4)
    monkeypatch.setattr(small_measures, "TIMESTEPS", 2)
    monkeypatch.setattr(small_measures, "SampleConfig", partial(SampleConfig, steps=2))
    for module in MODULES:
        for name, value in SMALLER.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
        if hasattr(module, "SmallRun"):
            monkeypatch.setattr(module, "SmallRun", partial(SmallRun, steps=STEPS, batch=BATCH))
    for module in (bucketed_crops, crop_conditioning, size_conditioning):
        monkeypatch.setattr(module, "COUNT", 24)
    monkeypatch.setattr(tag_weights, "COUNT", 50)
    few = SampleConfig(prompts=small_figures.PROMPTS[:1], seeds=1, steps=2, guidance=1.0, width=16, height=16)
    monkeypatch.setattr(small_figures, "SETTINGS", few)
    monkeypatch.setattr(small_figures, "CANVAS", few)
    monkeypatch.setattr("refimpl.paper.experiments.EFFECT_SEEDS", 1)
    monkeypatch.setattr(small_autoencoder, "TRAIN", 16)
    monkeypatch.setattr(small_autoencoder, "HELD_OUT", 2)
    monkeypatch.setattr(small_autoencoder, "SIDE", 16)
    for module in (decoder_and_jpeg, ema_and_batch):
        monkeypatch.setattr(module, "SIDE", 16)
    monkeypatch.setattr(decoder_and_jpeg, "BEFORE", LatentConfig(train_steps=2, train_batch=2, train_size=16))
    finetuning = decoder_and_jpeg.DecoderConfig(
        steps=2, batch_size=2, size=16, learning_rate=1e-3, ema_decay=0.5, checkpoint_every=1
    )
    monkeypatch.setattr(decoder_and_jpeg, "FINETUNING", finetuning)
