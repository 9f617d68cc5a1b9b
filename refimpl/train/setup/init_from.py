"""Where a run starts from: another run, or a checkpoint of any tool (N §2.1: SDXL, uptrained to v-prediction)."""

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm
from transformers import CLIPTextConfig

from refimpl.diffusion.config import DiffusionConfig
from refimpl.errors import InputError
from refimpl.interop import any_checkpoint
from refimpl.interop.any_checkpoint import Opened
from refimpl.interop.diffusers_folder.tokenizers import find_tokenizer
from refimpl.interop.network.networks import towers_of
from refimpl.interop.run.checkpoints import find_checkpoint
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.model.unet import UNet
from refimpl.storage.streaming import load_into
from refimpl.text.config import TextConfig
from refimpl.text.tokenizer import Tokenizer, load_tokenizer, tiny_tokenizer
from refimpl.text.towers import Towers

SAME_TOWER = ("hidden_size", "num_hidden_layers", "projection_dim", "vocab_size")
TIME = {True: "zero-terminal-SNR", False: "plain"}


def open_start(init_from: str) -> Opened | None:
    """Opens what `train.init_from` names, reading only its headers; None where it is empty.

    Raises InputError when it is neither a run, a single file nor a diffusers folder, or holds no UNet.
    """
    if not init_from:
        return None
    path = Path(init_from)
    if path.is_dir() and not any((path / name).exists() for name in ("model_index.json", "config.json")):
        find_checkpoint(path)  # says what a run has to hold
    opened = any_checkpoint.load(path)
    if opened.checkpoint.unet is None:
        raise InputError(f"train.init_from {path} holds no UNet; give a checkpoint that does")
    return opened


def fill_unet(unet: UNet, opened: Opened, source: str) -> None:
    """Copies the checkpoint's UNet into the run's; InputError lists every tensor that differs."""
    assert opened.checkpoint.unet is not None  # open_start
    load_into(unet, opened.checkpoint.unet, source)


def say_start(opened: Opened, wanted: DiffusionConfig, source: str) -> None:
    """Reports what the checkpoint predicts and, where that differs, what this run trains it to predict."""
    found = opened.checkpoint.prediction
    line = (
        f"starts from {source} ({opened.kind}): it predicts {found.kind} on the "
        f"{TIME[found.zero_terminal_snr]} schedule ({found.reason})"
    )
    if (found.kind, found.zero_terminal_snr) != (wanted.parameterisation, wanted.zero_terminal_snr):
        line += (
            f"; this run trains it to {wanted.parameterisation} on the {TIME[wanted.zero_terminal_snr]} one"
        )
    tqdm.write(line)
    if found.sigma_min is not None or found.sigma_max is not None:
        tqdm.write(
            "it was conditioned on ¼·ln σ and is conditioned on t from here on, which it must learn first"
        )


def say_scale_shift(opened: Opened, chosen: ScaleShift) -> None:
    """Reports when the run's latents are scaled differently from the checkpoint's."""
    found = opened.checkpoint.scale_shift
    if found != chosen:
        tqdm.write(
            f"its latents were scaled by mean {found.mean} and std {found.std}, this run's by mean {chosen.mean} and "
            f"std {chosen.std}, which it must learn first (latents.scale_shift checkpoint keeps the checkpoint's)"
        )


def start_vae(opened: Opened, config: VAEConfig, source: str) -> VAE | None:
    """The checkpoint's autoencoder in float32, frozen; None where it has none.

    Raises InputError when its shape is not that of `config`, listing every tensor that differs.
    """
    if opened.checkpoint.vae is None:
        return None
    vae = VAE(config)
    load_into(vae, opened.checkpoint.vae, source)
    return vae.eval().requires_grad_(False)


def start_towers(opened: Opened | None, text: TextConfig, source: str) -> Towers:
    """Tokenizer and text towers, frozen: those of text.folder, or else those that the checkpoint holds.

    Raises InputError when there are none, or when the checkpoint's are not those that `text.towers` names.
    """
    if opened is None or text.folder or not (opened.checkpoint.text_l or opened.checkpoint.text_g):
        return text.load()
    encoder_l, encoder_g = towers_of(opened.checkpoint, source)
    wanted_l, wanted_g = text.architectures()
    if encoder_g is None or (encoder_l is None and wanted_l is not None):
        raise InputError(
            f"train.init_from {source} lacks a text tower that text.towers {text.towers!r} needs; name a folder with "
            "text.folder"
        )
    for name, tower, architecture in (("CLIP-L", encoder_l, wanted_l), ("bigG", encoder_g, wanted_g)):
        if tower is not None and architecture is not None:
            _check_tower(name, tower.float().config, architecture, source)
    tokenizer = replace(_tokenizer(opened, text, source), clean=text.clean)
    return tokenizer, (encoder_l if text.has_l else None), encoder_g


def _check_tower(name: str, found: CLIPTextConfig, wanted: CLIPTextConfig, source: str) -> None:
    differing = [
        f"{field} {getattr(found, field)} instead of {getattr(wanted, field)}"
        for field in SAME_TOWER
        if getattr(found, field) != getattr(wanted, field)
    ]
    if differing:
        raise InputError(
            f"the {name} text tower of train.init_from {source} is not that of text.towers: {', '.join(differing)}; "
            "name the run's towers with text.towers, or a folder with text.folder"
        )


def _tokenizer(opened: Opened, text: TextConfig, source: str) -> Tokenizer:
    """text.tokenizer, or the checkpoint's own, or one beside it."""
    if text.tokenizer:
        return load_tokenizer(text.tokenizer)
    if isinstance(opened.tokenizer, Tokenizer):
        return opened.tokenizer
    if text.is_tiny:
        return tiny_tokenizer()
    try:
        return find_tokenizer(opened.tokenizer or Path(source).parent)
    except InputError as error:
        raise InputError(
            f"train.init_from {source} comes without a tokenizer, and there is none beside it; name the folder of "
            "CLIP's (vocab.json and merges.txt) with text.tokenizer"
        ) from error
