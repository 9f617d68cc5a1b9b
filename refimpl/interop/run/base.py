"""The UNet that a run's adapters adapt: a checkpoint that stays where it is, known by its digest (Hu et al. 2021).

RUN/base.json                     {"path", "sha256"}: the checkpoint, and the digest of its UNet's names and float32
                                  values, which is the same in whatever format or dtype that holds them the UNet lies
RUN/components/unet.safetensors   instead: a copy of the UNet, where `lora.copy_base` asks for one
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from refimpl.errors import InputError
from refimpl.model.unet import UNet
from refimpl.storage import committed, safetensors_file
from refimpl.storage.atomic import replace_text
from refimpl.storage.shards import digest
from refimpl.storage.streaming import in_float32, load_into
from refimpl.tables import parsed_json

BASE, COPY = "base.json", "unet.safetensors"


def refer_to_base(run: Path, source: Path, unet: UNet) -> None:
    """Notes in the run folder that its adapters adapt `unet`, which was read from the checkpoint `source`."""
    table = {"path": str(source.resolve()), "sha256": digest(unet.state_dict())}
    replace_text(run / BASE, json.dumps(table, indent=1) + "\n")


def base_digest(run: Path) -> str:
    """The digest of the UNet that a run's adapters adapt: its own, or of a copy, from the manifest, the file's."""
    if not (run / BASE).is_file():
        return committed.read_manifest(run / "components").get(COPY, {}).get("sha256", "")
    return _reference(run)["sha256"]


def check_base(run: Path, folder: Path, state: Mapping[str, Any]) -> None:
    """Raise InputError when a checkpoint's adapters were trained on a different UNet than the run's."""
    if state.get("base") != base_digest(run):
        where = BASE if (run / BASE).is_file() else f"components/{COPY}"
        raise InputError(
            f"{folder} holds adapters of a UNet other than {run}/{where} (its state.json says "
            f"{state.get('base')!r}); put the checkpoint back into its own run folder"
        )


def base_state(run: Path) -> dict[str, Tensor]:
    """The UNet that a run's adapters adapt, mapped or converted to float32 when used; a referenced one is verified.

    Raises InputError when the checkpoint is gone, or is no longer the one that the run began with.
    """
    if not (run / BASE).is_file():
        return safetensors_file.read(run / "components" / COPY)[0]
    from refimpl.interop import any_checkpoint  # which reads runs too

    table = _reference(run)
    path, remedy = Path(table["path"]), f'put it back, or set "path" in {run / BASE} to where it lies now'
    if not path.exists():
        raise InputError(f"{path} is gone, whose UNet the adapters of {run} adapt; {remedy}")
    state = any_checkpoint.load(path).checkpoint.unet
    floats = {} if state is None else {name: in_float32(value) for name, value in state.items()}
    found = digest(floats)
    if found != table["sha256"]:
        raise InputError(
            f"{path} has changed: the adapters of {run} adapt a UNet with the SHA-256 {table['sha256']}, and its "
            f"own has {found}; {remedy}"
        )
    return floats


def load_base(run: Path, unet: UNet) -> None:
    """Load the weights that a run's adapters adapt into the UNet, without a second copy in memory.

    Raises InputError as `base_state` does, or listing every tensor that does not fit.
    """
    where = run / BASE if (run / BASE).is_file() else run / "components" / COPY
    load_into(unet, base_state(run), str(where))


def _reference(run: Path) -> dict[str, str]:
    try:
        table = parsed_json((run / BASE).read_text(encoding="utf-8"))
        return {name: str(table[name]) for name in ("path", "sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{run / BASE} cannot be read ({error!r}); it must be a JSON object with the path of the checkpoint that "
            "the run began with, and with its sha256 as state.json of a checkpoint has it (base)"
        ) from error
