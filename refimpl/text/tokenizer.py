"""Prompts → token ids in chunks of 75 (S §2.1, N §4.2), with one CLIP vocabulary and two padding ids."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPTokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]  # of transformers 5, an alias
    PreTrainedTokenizerBase,
)

from refimpl.errors import InputError
from refimpl.text.cleaning import cleaned
from refimpl.text.tiny_vocabulary import write_tiny_vocabulary

CHUNK_TOKENS = 75
"""Prompt tokens per chunk: CLIP's 77 positions minus BOS and EOS."""

ROW_TOKENS = CHUNK_TOKENS + 2

Chunk = tuple[int, ...]
"""The prompt's own ids in one chunk, at most 75, without BOS, EOS or padding."""


@dataclass(frozen=True)
class Tokenizer:
    """A CLIP vocabulary with the special ids that the two text encoders expect.

    CLIP-L pads with EOS (49407 in CLIP's vocabulary), bigG with id 0; that is the only difference between them. Both
    read an exclamation mark as the word that it is, id 256: only diffusers' second tokenizer makes it padding.

    clean  what is done to a text first: none, or openclip (see refimpl.text.cleaning)
    """

    clip: PreTrainedTokenizerBase
    bos_id: int
    eos_id: int
    pad_l_id: int
    pad_g_id: int
    vocabulary_size: int
    clean: str = "none"

    def ids(self, text: str) -> list[int]:
        """All token ids of a text, without BOS and EOS.

        A special token spelled out in the text (`<|endoftext|>`) becomes that token, as in CLIP.
        Raises InputError when text is not a str, or contains an unpaired surrogate, or can't be cleaned.
        """
        if not isinstance(text, str):
            raise InputError(f"prompt: expected a str, got {type(text).__name__}: {text!r}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"prompt: {text!r} is not valid Unicode ({error}); fix its encoding") from error
        text = cleaned(text, self.clean)
        return self.clip(text, add_special_tokens=False, verbose=False)["input_ids"]

    def chunks(self, text: str) -> list[Chunk]:
        """The text's ids in consecutive chunks of 75; the empty text is one empty chunk.

        Raises InputError as `ids` does.
        """
        ids = self.ids(text)
        return [tuple(ids[i : i + CHUNK_TOKENS]) for i in range(0, max(len(ids), 1), CHUNK_TOKENS)]

    def rows_l(self, chunks: Sequence[Chunk]) -> Tensor:
        """[N, 77] int64 for CLIP-L: BOS, the chunk, EOS, then EOS as padding."""
        return self._rows(chunks, self.pad_l_id)

    def rows_g(self, chunks: Sequence[Chunk]) -> Tensor:
        """[N, 77] int64 for bigG: BOS, the chunk, EOS, then id 0 as padding."""
        return self._rows(chunks, self.pad_g_id)

    def _rows(self, chunks: Sequence[Chunk], pad_id: int) -> Tensor:
        padding = [(pad_id,) * (CHUNK_TOKENS - len(chunk)) for chunk in chunks]
        rows = [(self.bos_id, *c, self.eos_id, *p) for c, p in zip(chunks, padding, strict=True)]
        return torch.tensor(rows, dtype=torch.int64).view(-1, ROW_TOKENS)

    def save(self, folder: Path | str) -> None:
        """Write the folder that `load_tokenizer` reads; vocab.json and merges.txt are among its files."""
        self.clip.save_pretrained(str(folder))
        if self.clip.is_fast:  # the slow tokenizers of older transformers write those two already
            backend: Any = self.clip.backend_tokenizer
            backend.model.save(str(folder))


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """A CLIP tokenizer from a local folder, such as `tokenizer` of a diffusers SDXL folder.

    folder  holds vocab.json and merges.txt, or tokenizer.json. Nothing is downloaded.
    Raises InputError when the folder is missing or holds no CLIP tokenizer.
    """
    folder = Path(folder)
    files = "vocab.json and merges.txt, or tokenizer.json"
    has_files = (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )
    if not has_files:
        raise InputError(f"tokenizer folder {folder}: {files} not found; give a CLIP tokenizer's folder")
    try:
        clip = CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        plain_ids = clip(string.printable, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise InputError(
            f"tokenizer folder {folder}: cannot be read as a CLIP tokenizer ({error})"
        ) from error
    bos_id, eos_id = clip.bos_token_id, clip.eos_token_id
    if not isinstance(bos_id, int) or not isinstance(eos_id, int):
        raise InputError(f"tokenizer folder {folder}: BOS or EOS token missing; this is not a CLIP tokenizer")
    if eos_id in plain_ids:  # EOS stands for what the vocabulary lacks, and would end prompts early
        raise InputError(
            f"tokenizer folder {folder}: the vocabulary lacks plain characters; it is not CLIP's"
        )
    return as_tokenizer(clip)


def as_tokenizer(tokenizer: Tokenizer | PreTrainedTokenizerBase) -> Tokenizer:
    """A CLIP tokenizer of transformers with the padding ids of the two towers; a Tokenizer is returned as is.

    Raises InputError for anything else, and when BOS or EOS is missing.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    bos_id, eos_id = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or bos_id is None or eos_id is None:
        raise InputError(
            f"tokenizer: {type(tokenizer).__name__} has no BOS and EOS; give one from load_tokenizer, or a "
            "CLIPTokenizer of transformers"
        )
    return Tokenizer(tokenizer, bos_id, eos_id, pad_l_id=eos_id, pad_g_id=0, vocabulary_size=len(tokenizer))


@lru_cache(maxsize=1)
def tiny_tokenizer() -> Tokenizer:
    """The tokenizer of the tiny models: the same code with `tiny_vocabulary`."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_vocabulary(Path(folder))
        return load_tokenizer(folder)
