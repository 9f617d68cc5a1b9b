"""A run folder: the settings, the frozen parts and the checkpoints that together make a model.

config.json              the run's configuration
components/              autoencoder, scale-and-shift, text towers, tokenizer: written once, when training starts
base.json                for runs that train adapters, which UNet they adapt, and where it lies (base.py)
checkpoints/step-N/      the trained weights, their moving average, optimizer state (trained_parts.py, checkpoints.py)
metrics.jsonl, samples/  the run's logs
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from refimpl.diffusion.config import DiffusionConfig
from refimpl.errors import InputError
from refimpl.interop.run.base import COPY, check_base, load_base
from refimpl.interop.run.checkpoints import read_checkpoint
from refimpl.interop.run.trained_parts import add_adapters, file_name, load_network_state
from refimpl.interop.single_file.layout import VAE_PREFIX
from refimpl.latents.config import VAEConfig
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.vae import VAE
from refimpl.model.config import UNetConfig
from refimpl.model.lora.adapters import merge_lora
from refimpl.model.lora.config import LoRAConfig
from refimpl.model.pipeline import PARTS, Model
from refimpl.model.unet import UNet
from refimpl.storage import committed, safetensors_file
from refimpl.storage.atomic import replace_text
from refimpl.storage.ranks.peers import ALONE, Peers
from refimpl.storage.streaming import load_state
from refimpl.tables import from_table
from refimpl.text.config import TextConfig
from refimpl.text.image_tower import load_image_tower, save_image_tower
from refimpl.text.towers import load_towers, save_towers

CONFIG = "config.json"
WEIGHTS = ("ema", "unet")
IMAGE_TOWER, AUTOENCODER = "image_encoder", "autoencoder.safetensors"


def save_components(run: Path, model: Model, with_unet: bool = False) -> None:
    """Commit the networks that a run starts from to `run`/components.

    with_unet  also save a copy of the UNet, which checkpoints of adapters do not contain
    """
    with committed.committed_folder(run / "components") as folder:
        committed.write_state(folder / AUTOENCODER, model.vae.state_dict())
        (folder / "scale_shift.json").write_text(model.scale_shift.to_json(), encoding="utf-8")
        save_towers(folder, (model.tokenizer, model.encoder_l, model.encoder_g))
        if model.image_tower is not None:
            save_image_tower(model.image_tower, folder / IMAGE_TOWER)
        if with_unet:
            committed.write_state(folder / COPY, model.unet.state_dict())


class Found(NamedTuple):
    """A checkpoint of a run, read and verified, and the settings that say what it is."""

    folder: Path
    documents: dict[str, Any]
    table: dict[str, Any]
    """The run's configuration."""
    states: dict[str, dict[str, Tensor]]
    """Part → what the checkpoint holds of it, memory-mapped; a part that is not trained is left out."""
    files: dict[str, str]
    """Part → the name of its file."""
    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    diffusion: DiffusionConfig
    lora: LoRAConfig

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder.resolve().parent.parent  # "." inside checkpoints/step-N has no parent in its name

    def source(self, part: str) -> str:
        """The file of a part, for messages."""
        return str(self.folder / f"{self.files[part]}.safetensors")


def read_run(path: Path, weights: str = "ema") -> Found:
    """Reads a checkpoint; arguments and errors are those of `load_model`, but no network is built."""
    folder, documents, table, states, files = read_weights(path, weights)
    where = f"{folder}/{CONFIG}"
    return Found(
        folder,
        documents,
        table,
        states,
        files,
        from_table(UNetConfig, table.get("unet"), f"{where} [unet]"),
        from_table(VAEConfig, table.get("vae"), f"{where} [vae]"),
        from_table(TextConfig, table.get("text"), f"{where} [text]"),
        from_table(DiffusionConfig, table.get("diffusion"), f"{where} [diffusion]"),
        from_table(LoRAConfig, table.get("lora", {}), f"{where} [lora]"),
    )


def read_weights(
    path: Path, weights: str = "ema"
) -> tuple[Path, dict[str, Any], dict[str, Any], dict[str, dict[str, Tensor]], dict[str, str]]:
    """A checkpoint's folder, documents, settings as a table, and what it holds of each part, as in `Found`.

    Raises InputError for unknown weights, and when something is missing or damaged.
    """
    if weights not in WEIGHTS:
        raise InputError(f"weights {weights!r} are unknown; use {' or '.join(WEIGHTS)}")
    wanted = {part: file_name(part, "ema" if weights == "ema" else "weights") for part in PARTS}
    folder, files, (tensors, documents) = read_checkpoint(path, wanted)
    table = documents["config"]
    if not isinstance(table, dict):
        raise InputError(
            f"{folder}/{CONFIG} must hold a table of settings, not {table!r}; use another checkpoint"
        )
    return folder, documents, table, {part: tensors[file] for part, file in files.items()}, files


def load_model(path: Path, weights: str = "ema") -> tuple[Model, dict[str, Any], int]:
    """The model of a checkpoint.

    path     a run folder (its newest whole checkpoint) or one of its checkpoints/step-* folders
    weights  "ema", the moving average, or "unet", the weights as trained
    returns  the model on the CPU in eval mode, the run's configuration as a table, the checkpoint's step
    Raises InputError when something is missing, damaged, or does not fit, listing every tensor that differs.
    """
    found = read_run(Path(path), weights)
    unet = UNet(found.unet)
    if found.lora.rank:
        check_base(found.run, found.folder, found.documents["state"])
        load_base(found.run, unet)
    model = load_components(found.run, unet, found.vae, found.text, found.diffusion)
    for part, state in found.states.items():
        network = model.parts()[part]
        if found.lora.rank:
            add_adapters(part, network, found.lora)
        load_network_state(network, state, found.source(part))
        merge_lora(network)
        network.eval().requires_grad_(False)
    return model, found.table, state_number(found.folder, found.documents, "step")


def state_number(folder: Path, documents: Mapping[str, Any], name: str) -> int:
    """An integer from a checkpoint's state.json. Raises InputError when it is not there."""
    state = documents["state"]
    if not isinstance(state, dict) or type(state.get(name)) is not int:
        raise InputError(f"{folder}/state.json holds no integer {name!r}; use another checkpoint")
    return state[name]


def load_components(
    run: Path,
    unet: UNet,
    vae_config: VAEConfig,
    text: TextConfig,
    diffusion: DiffusionConfig,
    peers: Peers = ALONE,
) -> Model:
    """A run's model with the given `unet`; its other networks are as they were when the run started.

    peers  the ranks that load it together and divide the files among them to verify them
    Raises InputError when a component is missing or differs from the manifest.
    """
    folder = run / "components"
    committed.verify(folder, peers=peers)
    vae = load_autoencoder(folder / AUTOENCODER, vae_config)
    scale_shift = ScaleShift.from_json((folder / "scale_shift.json").read_text(encoding="utf-8"))
    has_image_tower = (folder / IMAGE_TOWER).is_dir()
    image_tower = load_image_tower(folder / IMAGE_TOWER, text.pooled_dim) if has_image_tower else None
    towers = load_towers(folder, text.has_l, clean=text.clean)
    return Model(unet, vae, scale_shift, *towers, text, diffusion, image_tower)


def load_autoencoder(path: Path, config: VAEConfig) -> VAE:
    """A frozen autoencoder from a safetensors file, with or without the single file's key prefix.

    Raises InputError when the file cannot be read, or lists every tensor that does not fit.
    """
    state = safetensors_file.read(path)[0]
    prefixed = {k.removeprefix(VAE_PREFIX): v for k, v in state.items() if k.startswith(VAE_PREFIX)}
    vae = VAE(config)
    load_state(vae, prefixed or state, str(path))
    return vae.eval().requires_grad_(False)


def write_config(run: Path, table: Mapping[str, Any]) -> None:
    """Writes the run's configuration beside its checkpoints, whole or not at all."""
    replace_text(Path(run) / CONFIG, json.dumps(table, indent=1) + "\n")
