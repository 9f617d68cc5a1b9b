"""Every path that a run's settings name, looked at before anything is imported that takes long.

Only what a path points to is checked here, by names and kinds of files; the readers check what is in them.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from refimpl.errors import InputError
from refimpl.latents.config import SCALE_SHIFT_NAMES
from refimpl.names import near_path
from refimpl.run.config import Config
from refimpl.run.here.files import (
    TOKENIZER_FOLDERS,
    absent,
    cannot_make,
    has_tokenizer,
    holds_images,
    is_cache,
    not_json,
    shards_in,
    wrong_kind,
)
from refimpl.run.here.machine import machine_problems
from refimpl.run.ranks.restarts import restarts

UNET_FOLDER = "unet"  # in a diffusers folder, also in one that has lost its index
MANIFEST = "manifest.json"  # of a folder that was committed whole, as a trained autoencoder's is
IN_CHECKPOINTS = ("model_index.json", "config.json", UNET_FOLDER, MANIFEST)  # one is in each that is a folder
OUT = "train.out"
RUN_SETTINGS, RUN_LOCK = "config.json", ".lock"
DRAWN = ("train", "heldout")  # folders of the demonstration's images, side by side
WRONG_PATHS = "paths of the settings are wrong"
IS_CHECKPOINT = "give a .safetensors file, a diffusers folder or a run folder"


def check_here(config: Config) -> None:
    """Raises InputError listing all that training could not use, or lacks: paths, and the library and GPU named."""
    lacking = machine_problems(config)
    refuse([*path_problems(config), *lacking], "settings can't be used here" if lacking else WRONG_PATHS)


def problems_here(config: Config) -> list[str]:
    """All that training could not use, or lacks; empty where nothing is."""
    return [*path_problems(config), *machine_problems(config)]


def refuse(problems: Sequence[str], what: str = WRONG_PATHS) -> None:
    """Raises InputError with the problems, if there are any."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(f"{len(problems)} {what}\n{listing}")


def path_problems(config: Config) -> list[str]:
    """What is wrong with the paths, each with the setting that names it; empty where nothing is."""
    problems = [*image_problems(config), *_image_tower(config)]
    has_networks = os.path.isdir(os.path.join(config.train.out, "components"))
    if not (config.train.resume and has_networks):
        problems += [*_start(config), *_autoencoder(config), *_scale_shift(config), *_text(config)]
    return [*problems, *_out(config)]


def image_problems(config: Config) -> list[str]:
    """Those of the paths of images and of what was encoded of them."""
    return [*_data(config), *_cache(config)]


def network_problems(config: Config, with_text: bool) -> list[str]:
    """Those of the paths of the networks that encode images, and captions where they do."""
    return [*_start(config), *_autoencoder(config), *(_text(config) if with_text else ())]


def data_problem(setting: str, path: str) -> str | None:
    """What is wrong with a data set's path; None where nothing is."""
    if not os.path.exists(path):
        return (
            f"{setting} {path}: there is no such folder{near_path(path)}; give one of images with .txt captions, an "
            "index, or a .jsonl, .json, .parquet or .tar file"
        )
    if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
        return f"{setting} {path} can't be read; change its permissions"
    if os.path.isdir(path) and not holds_images(path):
        shards = shards_in(path)
        instead = "; give a folder of images with .txt captions"
        if shards:
            instead = f", but {shards[0]}; give that one, or an index of several (`refimpl data index`)"
        return f"{setting} {path}: no images in it{instead}"
    return f"{setting} {path}: {why}" if os.path.isfile(path) and (why := _no_data_set(path)) else None


def _no_data_set(path: str) -> str:
    from refimpl.data.index.index_file import (
        is_index,  # with numpy, which most settings' paths need not wait for
    )
    from refimpl.data.index.layouts.detect import no_data_set

    return "" if is_index(path) else no_data_set(path)


def _data(config: Config) -> Iterator[str]:
    if not all(stage.folder for stage in config.all_stages()):
        yield "data.folder is empty; name a folder of images with .txt or .caption sidecars"
    for number, stage in enumerate(config.stages):
        if stage.folder:
            yield from _found(data_problem(f"stages[{number}].folder", stage.folder))
    folder, heldout = config.data.folder, config.data.heldout
    is_absent = not os.path.exists(folder)
    # The demonstration's images are drawn when training begins: into its own folders, and not beside a typo.
    own = Path(folder).name == DRAWN[0] and Path(heldout) == Path(folder).with_name(DRAWN[1])
    is_drawn = config.data.demo and own and is_absent
    if folder and not is_drawn and any(stage.folder == folder for stage in config.all_stages()):
        yield from _found(data_problem("data.folder", folder))
    if heldout and not (config.data.demo and is_absent):
        problem = data_problem("data.heldout", heldout)
        theirs = ", or none with --data.heldout ''; this one is the demonstration's"
        yield from _found(problem and problem + (theirs if Path(heldout).name == DRAWN[1] else ""))


def _found(problem: str | None) -> Iterator[str]:
    if problem is not None:
        yield problem


def _cache(config: Config) -> Iterator[str]:
    folder = config.data.cache
    if folder and not is_cache(folder):
        why = (
            " holds no finished cache"
            if os.path.isdir(folder)
            else f": there is no such folder{near_path(folder)}"
        )
        yield f"data.cache {folder}{why}; write it with `refimpl cache`"


def _image_tower(config: Config) -> Iterator[str]:
    folder = config.image_prompt.folder
    if folder and not os.path.isdir(folder):
        yield f"image_prompt.folder {folder}: there is no such folder; give one of a CLIPVisionModelWithProjection"


def _start(config: Config) -> Iterator[str]:
    start = config.train.init_from
    if not start:
        return
    if why := absent(start):
        yield f"train.init_from {start} {why}; {IS_CHECKPOINT}"
    elif os.path.isdir(start) and not any(
        os.path.exists(os.path.join(start, name)) for name in IN_CHECKPOINTS
    ):
        yield (
            f"train.init_from {start} holds no checkpoint; give a run folder or one of its checkpoints/step-* "
            "folders, a diffusers folder or a .safetensors file"
        )
    elif kind := wrong_kind(start):
        yield f"train.init_from {start} {kind}"


def _autoencoder(config: Config) -> Iterator[str]:
    settings = config.latents
    if settings.weights:
        if why := absent(settings.weights):
            yield f"latents.weights {settings.weights} {why}; give a .safetensors file"
        elif os.path.isdir(settings.weights):
            yield f"latents.weights {settings.weights} is a folder; give the .safetensors file in it"
        elif kind := wrong_kind(settings.weights):
            yield f"latents.weights {settings.weights} {kind}"
        return
    folder = settings.folder
    if folder and os.path.exists(folder):
        if not os.path.isfile(os.path.join(folder, MANIFEST)):
            yield f"latents.folder {folder} exists but holds no autoencoder; delete it or name another"
    elif not (settings.train_steps or config.train.init_from):
        yield (
            "no autoencoder: give latents.weights (a safetensors file), or latents.train_steps to train one, or "
            "start from a checkpoint that has one (train.init_from)"
        )


def _scale_shift(config: Config) -> Iterator[str]:
    choice = config.latents.scale_shift
    if choice in ("measure", "checkpoint", *SCALE_SHIFT_NAMES):
        return
    if kind := not_json(choice):
        yield f"latents.scale_shift {choice} {kind}; give what `refimpl stats` has written"
    elif not os.path.isfile(choice):
        yield (
            f"latents.scale_shift {choice!r} is neither measure, checkpoint, {', '.join(SCALE_SHIFT_NAMES)} nor a "
            "readable file"
        )


def _text(config: Config) -> Iterator[str]:
    text, start = config.text, config.train.init_from
    if text.tokenizer and not has_tokenizer(text.tokenizer):
        yield f"text.tokenizer {text.tokenizer} has no tokenizer.json or vocab.json; give the folder of CLIP's"
    if text.is_tiny:
        return
    if text.folder:
        wanted = ("text_encoder", "text_encoder_2") if text.has_l else ("text_encoder_2",)
        lacking = [f"{name}/" for name in wanted if not os.path.isdir(os.path.join(text.folder, name))]
        if not os.path.isdir(text.folder):
            near = near_path(text.folder)
            yield f"text.folder {text.folder}: there is no such folder{near}; give a diffusers SDXL folder"
        elif lacking:
            yield f"text.folder {text.folder} has no {', '.join(lacking)}; give a diffusers SDXL folder"
    elif not start:
        yield (
            "text.folder is empty; name a folder with tokenizer/, text_encoder/ and text_encoder_2/ (a diffusers "
            f"SDXL folder has them), which text.towers {text.towers!r} come from"
        )
    elif not text.tokenizer and _lacks_tokenizer(start):
        yield (
            f"train.init_from {start} comes without a tokenizer, and there is none beside it; name the folder of "
            "CLIP's (vocab.json and merges.txt) with text.tokenizer"
        )


def _lacks_tokenizer(start: str) -> bool:
    """Whether a checkpoint other than a run, which has its own, comes with no tokenizer, nor is one beside it."""
    own = os.path.isdir(start) and any(
        os.path.isdir(os.path.join(start, name)) for name in TOKENIZER_FOLDERS[1:]
    )
    if os.path.isdir(start) and not own and not os.path.isdir(os.path.join(start, UNET_FOLDER)):
        return False  # a run
    return os.path.exists(start) and not has_tokenizer(start if own else os.path.dirname(start) or ".")


def _out(config: Config) -> Iterator[str]:
    if config.train.out and not config.train.resume and not restarts():  # which go on with what is there
        yield from _found(out_problem(Path(config.train.out)))


def out_problem(out: Path, setting: str = OUT) -> str | None:
    """Why a new run can't be written to a folder: it holds something already, or can't be made; None where it can.

    setting  what names the folder; only a run that train.out names can be continued
    """
    try:
        if not out.exists():
            why = cannot_make(out)
            return f"{setting} {out} cannot be made or read: {why}; choose another folder" if why else None
        if out.is_dir() and all(path.name == RUN_LOCK for path in out.iterdir()):
            return None
    except OSError as error:
        return f"{setting} {out} cannot be made or read: {error.strerror}; choose another folder"
    is_run = os.path.exists(out / RUN_SETTINGS)
    go_on = ", or continue that run with --resume" if is_run and setting == OUT else ""
    return (
        f"{setting} {out} holds {'another run' if is_run else 'other files'}; choose an empty folder{go_on}"
    )
