"""The weights of one component of a diffusers folder: one safetensors file, a variant of it, or shards with an index.

diffusion_pytorch_model.safetensors                  (model.safetensors in a text tower)
diffusion_pytorch_model.fp16.safetensors             the variant "fp16"
diffusion_pytorch_model.safetensors.index.json       {"weight_map": {tensor: file in the same folder}}
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from refimpl.errors import InputError
from refimpl.storage import safetensors_file
from refimpl.tables import parsed_json

LARGEST_JSON = 64_000_000  # bytes; the index of SDXL's UNet takes 200,000
SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.msgpack")


def read_weights(folder: Path, stem: str, variant: str | None = None) -> tuple[dict[str, Tensor], str]:
    """All tensors of a component, memory-mapped in their stored dtypes, and the file they come from.

    stem     name of the weight file up to the first dot
    variant  name of a variant; None takes the plain file, or the only variant there is
    Raises InputError when there are no weights, several variants but no plain file, only pickles, or a broken index.
    """
    path = _weights_file(folder, stem, variant)
    if path.suffix != ".json":
        return safetensors_file.read(path)[0], str(path)
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: weight_map must map tensors to files; copy or download it again")
    shards: dict[str, dict[str, Tensor]] = {}
    for name in dict.fromkeys(map(str, weight_map.values())):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise InputError(
                f"{path} names the shard {name!r:.200}, which is not a safetensors file in the same folder"
            )
        shards[name] = safetensors_file.read(folder / name)[0]
    missing = [f"{key} in {name}" for key, name in weight_map.items() if key not in shards[str(name)]]
    if missing:
        listing = "\n  ".join(missing)
        raise InputError(f"{path} names {len(missing)} tensors that are not where it says:\n  {listing}")
    return {key: shards[name][key] for key, name in weight_map.items()}, str(path)


def _weights_file(folder: Path, stem: str, variant: str | None) -> Path:
    found: dict[str, Path] = {}  # variant → file; "" is the plain one
    for path in sorted(folder.glob(f"{stem}.*")):
        if SHARD.fullmatch(path.name):
            continue
        for pattern in (r"(?:\.(?P<v>[\w-]+))?\.safetensors", r"(?:\.(?P<v>[\w-]+))?\.safetensors\.index\.json",
                        r"\.safetensors\.index\.(?P<v>[\w-]+)\.json"):  # fmt: skip
            match = re.fullmatch(re.escape(stem) + pattern, path.name)
            if match:
                found.setdefault(match["v"] or "", path)
    if variant in found or (variant is None and "" in found):
        return found[variant or ""]
    if variant is None and len(found) == 1:
        return next(iter(found.values()))
    if found:
        names = ", ".join(path.name for path in found.values())
        wanted = (
            f"has no variant {variant!r}" if variant is not None else "has several variants and no plain file"
        )
        raise InputError(
            f"{folder} {wanted}; it holds {names}: keep one of these, or name one with the argument `variant`"
        )
    pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
    if pickles:
        raise InputError(
            f"{folder} holds its weights as {', '.join(pickles)}, a pickle, which can run code when it is read; it "
            "is not opened. Convert it on a machine you can afford to lose: torch.load(FILE, weights_only=True), "
            f"then save the result with safetensors.torch.save_file as {stem}.safetensors"
        )
    raise InputError(f"{folder} has no {stem}.safetensors; copy or download this part again")


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file. Raises InputError when the file is absent or anything else."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise InputError(
                f"{path} is larger than {LARGEST_JSON} bytes, so it is not a settings file of diffusers"
            )
        table = parsed_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(table).__name__}")
    return table
