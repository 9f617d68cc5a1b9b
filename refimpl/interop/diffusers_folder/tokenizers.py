"""tokenizer/ and tokenizer_2/ of a diffusers folder: one vocabulary, with each tower's padding token (S §2.1)."""

import json
from pathlib import Path

from refimpl.errors import InputError
from refimpl.text.tokenizer import ROW_TOKENS, Tokenizer, load_tokenizer

CONFIG = "tokenizer_config.json"
OURS_ONLY = ("backend", "is_local", "local_files_only")
"""settings that transformers records about how it was called, which no reader needs"""


def find_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer in a folder: its own files, or those in tokenizer/ or tokenizer_2/ of a diffusers folder.

    Raises InputError when there is none.
    """
    path = Path(path)
    places = (path, path / "tokenizer", path / "tokenizer_2")
    for place in places:
        if (place / "tokenizer.json").is_file() or (place / "vocab.json").is_file():
            return load_tokenizer(place)
    raise InputError(
        f"{path} has no tokenizer: neither it nor its tokenizer/ has tokenizer.json, or vocab.json and merges.txt"
    )


def write_tokenizers(tokenizer: Tokenizer, folder: Path, names: tuple[str, ...]) -> None:
    """Write `tokenizer` (padded with EOS, for CLIP-L) and `tokenizer_2` (padded with id 0, for bigG).

    As in the published folder, the padding token of `tokenizer_2` is "!": in diffusers, though not here and not in
    OpenCLIP, bigG sees an exclamation mark in a prompt as padding.
    """
    for name in names:
        place = folder / name
        tokenizer.save(place)
        pad = tokenizer.pad_g_id if name == "tokenizer_2" else tokenizer.pad_l_id
        special = {
            "bos_token": tokenizer.clip.convert_ids_to_tokens(tokenizer.bos_id),
            "eos_token": tokenizer.clip.convert_ids_to_tokens(tokenizer.eos_id),
            "pad_token": tokenizer.clip.convert_ids_to_tokens(pad),
            "unk_token": tokenizer.clip.convert_ids_to_tokens(tokenizer.eos_id),
        }
        found = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        config = {key: value for key, value in found.items() if key not in OURS_ONLY}
        config |= {**special, "model_max_length": ROW_TOKENS, "tokenizer_class": "CLIPTokenizer"}
        for file, table in ((CONFIG, config), ("special_tokens_map.json", special)):
            (place / file).write_text(
                json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
