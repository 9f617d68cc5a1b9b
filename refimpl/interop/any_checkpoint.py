"""A checkpoint from whatever a path points to: a single file, a diffusers folder, or a run of this program."""

from pathlib import Path
from typing import NamedTuple

from refimpl.errors import InputError
from refimpl.interop import diffusers_folder, single_file
from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.interop.diffusers_folder.weights import read_json
from refimpl.interop.run import as_checkpoint as run_checkpoint
from refimpl.interop.run.run_folder import CONFIG
from refimpl.storage import committed
from refimpl.text.tokenizer import Tokenizer

FILE, FOLDER, RUN = "single file", "diffusers folder", "run"


class Opened(NamedTuple):
    """A checkpoint and where it comes from."""

    kind: str
    """single file, diffusers folder or run"""
    checkpoint: Checkpoint
    tokenizer: Tokenizer | Path | None
    """the tokenizer of its text towers, or the folder that contains it; None if there is none"""
    zeros_for_empty: bool
    """whether the null condition is zeros, as SDXL was trained, rather than the empty prompt"""
    path: Path
    """the file or folder itself; of a run, the checkpoint that was read"""


def kind_of(path: Path | str) -> str:
    """The kind of checkpoint: single file, diffusers folder or run; no file is opened.

    Raises InputError when `path` does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"{path} does not exist; give a .safetensors file, a diffusers folder or a run folder"
        )
    if not path.is_dir():
        return FILE
    run = (path / "checkpoints").is_dir() or (path / committed.MANIFEST).is_file()
    return RUN if run and (path / CONFIG).is_file() else FOLDER


def load(
    path: Path | str,
    prediction: Prediction | None = None,
    weights: str = "ema",
    use_ema: bool = False,
    keep_unknown: bool = False,
) -> Opened:
    """Open the checkpoint at `path`, of any kind.

    prediction    overrides what the file or folder says; not allowed for a run
    weights       for a run: "ema" or "unet"
    use_ema, keep_unknown  for a single file, as in refimpl.interop.single_file.read_write.load
    Raises InputError when `path` does not exist or cannot be read.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == RUN:
        checkpoint, beside = run_checkpoint.load(path, weights)
        if prediction is not None:
            raise InputError(
                f"{path} is a run, whose configuration says what it predicts; leave out --prediction, --v-pred and "
                "--ztsnr"
            )
        return Opened(kind, checkpoint, beside.tokenizer, beside.text.null == "zeros", beside.folder)
    if kind == FOLDER:
        checkpoint = diffusers_folder.load(path, prediction)
        has_tokenizer = any((path / name).is_dir() for name in ("tokenizer", "tokenizer_2"))
        index = path / diffusers_folder.INDEX
        zeros = read_json(index).get("force_zeros_for_empty_prompt", True) if index.is_file() else True
        return Opened(kind, checkpoint, path if has_tokenizer else None, bool(zeros), path)
    checkpoint = single_file.load(path, prediction, use_ema, keep_unknown)
    return Opened(kind, checkpoint, None, True, path)
