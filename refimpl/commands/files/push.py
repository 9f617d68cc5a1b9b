"""`refimpl push`: a finished run on a Hugging Face hub, with a model card."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from refimpl.checks import check_choice
from refimpl.commands.files.output import DTYPES
from refimpl.commands.terminal import parsed
from refimpl.errors import InputError

CARD = "README.md"


@dataclass(frozen=True)
class PushCommand:
    """Uploads a run as a folder for diffusers, or its LoRA as a file, with a model card. The repository is private
    unless --public is given.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder (its newest checkpoint is used) or one of its checkpoints/step-* folders."""
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="USER/NAME")]
    """Repository on the hub; it is made where there is none."""
    dry_run: bool = False
    """Write the folder with its card and upload nothing; needs no token."""
    out: Path | None = None
    """Folder to write, which stays there; RUN/hub when left out, which is removed after uploading."""
    public: bool = False
    """Make the repository public."""
    unfinished: bool = False
    """Also push a run that has not made all of its steps."""
    weights: str = "ema"
    """Weights to upload: ema (moving average) or unet (as trained)."""
    dtype: str = "fp16"
    """Dtype of all weights: fp16, bf16 or fp32; empty keeps each tensor's own."""
    tokenizer: str = ""
    """Folder with CLIP's tokenizer; empty for the run's own."""
    license: str = ""
    """Licence of the weights for the card, as the hub spells it (openrail++, apache-2.0); empty leaves it out."""
    endpoint: str = ""
    """Address of another hub; empty for HF_ENDPOINT, or huggingface.co."""

    def __post_init__(self) -> None:
        check_choice("--weights", self.weights, ("ema", "unet"))
        check_choice("--dtype", self.dtype or "fp32", DTYPES)


def push_command(arguments: list[str], program: str = "refimpl push") -> None:
    """Writes the folder and uploads it; whatever fails, nothing half-written stays."""
    command = parsed(PushCommand, arguments, program)
    from refimpl.interop.hub import check_endpoint, check_license, check_repo, find_token, upload

    check_repo(command.repo)
    check_license(command.license)
    check_endpoint(command.endpoint)
    settings, step = finished_run(command.run, command.unfinished)
    token = "" if command.dry_run else find_token()  # before gigabytes are written
    stays = command.dry_run or command.out is not None
    out = command.out or run_of(command.run) / "hub"
    if out.exists() or out.is_symlink():
        left = "" if stays else " (left by an upload that was killed, unless you made it)"
        raise InputError(f"{out} exists already{left}; give another name with --out, or remove it first")
    # SIGTERM ends this as SIGINT does, so that the folder is removed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        write_folder(command, settings, step, out)
        if command.dry_run:
            print(f"{out}: {CARD} and {_size(out) / 1e6:,.1f} MB for {command.repo}; nothing was uploaded")
            return
        message = f"refimpl: step {step} of {run_of(command.run).name}"
        where = upload(out, command.repo, token, message, command.public, command.endpoint)
        print(f"pushed: {where} ({'public' if command.public else 'private'})")
    finally:
        signal.signal(signal.SIGTERM, before)
        if not stays:
            shutil.rmtree(out, ignore_errors=True)


def finished_run(path: Path, unfinished: bool) -> tuple[dict[str, Any], int]:
    """A checkpoint's settings and step. Raises InputError where there is none, or its run is not at its end."""
    from refimpl.interop.run.checkpoints import read_checkpoint
    from refimpl.interop.run.run_folder import state_number

    if not path.exists():
        raise InputError(f"{path} does not exist; give the folder of a run that has finished")
    folder, _, (_, documents) = read_checkpoint(path, {})
    settings, step = documents["config"], state_number(folder, documents, "step")
    if not isinstance(settings, dict):
        raise InputError(f"{folder} holds no table of settings; use another checkpoint")
    wanted = settings.get("train", {}).get("steps", step)
    if step < wanted and not unfinished:
        raise InputError(
            f"{path} has not finished: {step} of {wanted} steps; go on with `refimpl train --resume "
            f"{run_of(path)}`, or push it as it is with --unfinished"
        )
    return settings, step


def run_of(path: Path) -> Path:
    """The run folder that a run or one of its checkpoints belongs to."""
    whole = path.resolve()
    return whole.parent.parent if whole.parent.name == "checkpoints" else path


def write_folder(command: PushCommand, settings: dict[str, Any], step: int, out: Path) -> None:
    """Writes what is to be uploaded, whole or not at all."""
    import refimpl
    from refimpl.interop.model_card import Facts, model_card
    from refimpl.storage.atomic import renamed_folder

    with renamed_folder(out) as folder:
        is_lora = bool(settings.get("lora", {}).get("rank"))
        name = f"{command.repo.rpartition('/')[2]}.safetensors" if is_lora else ""
        pipeline = "StableDiffusionXLPipeline"
        if is_lora:
            _write_lora(command, folder / name)
        else:
            pipeline = _write_model(command, folder)
        version, licence = refimpl.__version__, command.license
        facts = Facts(command.repo, settings, step, pipeline, name, command.weights, version, licence)
        (folder / CARD).write_text(model_card(facts), encoding="utf-8")


def _write_model(command: PushCommand, folder: Path) -> str:
    """Writes what diffusers opens into the folder; returns the pipeline that opens it."""
    from refimpl.commands.files.output import dtype_named
    from refimpl.interop import any_checkpoint, diffusers_folder
    from refimpl.interop.diffusers_folder.tokenizers import find_tokenizer

    opened = any_checkpoint.load(command.run, weights=command.weights)
    tokenizer = find_tokenizer(command.tokenizer) if command.tokenizer else opened.tokenizer
    whole = folder / "model"
    diffusers_folder.save(
        opened.checkpoint, whole, dtype_named(command.dtype), tokenizer, opened.zeros_for_empty
    )
    for path in sorted(whole.iterdir()):
        path.rename(folder / path.name)
    whole.rmdir()
    return json.loads((folder / diffusers_folder.INDEX).read_text(encoding="utf-8"))["_class_name"]


def _write_lora(command: PushCommand, path: Path) -> None:
    """Writes the adapters with kohya's names."""
    from refimpl.commands.files.output import dtype_named
    from refimpl.interop.lora import files as lora_files
    from refimpl.interop.run import lora as run_lora

    lora = run_lora.load(command.run, command.weights)
    named = replace(lora, metadata={**lora.metadata, "modelspec.title": path.stem})
    lora_files.save(named, path, dtype_named(command.dtype))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
