"""The small vocabulary in CLIP's layout."""

import hashlib
import json
from pathlib import Path

from refimpl.text.tiny_vocabulary import (
    BOS,
    EOS,
    WORDS,
    byte_symbols,
    tiny_vocabulary,
    write_tiny_vocabulary,
)


def test_layout_is_clips() -> None:
    tokens, merges = tiny_vocabulary()
    assert len(set(tokens)) == len(tokens) == 512 + len(merges) + 2
    assert tokens[0] == "!"  # as in CLIP, where bigG pads with it
    assert tokens[256] == "!</w>"
    assert tokens[-2:] == (BOS, EOS)
    assert [first + second for first, second in merges] == list(tokens[512:-2])


def test_ids_stay_as_they_are() -> None:
    # Saved tiny models know words by id: changing the list of words would change the meaning of their prompts.
    digest = hashlib.sha256("\n".join(tiny_vocabulary()[0]).encode()).hexdigest()
    assert digest.startswith("17b33ad1d76f3153")


def test_byte_symbols_are_distinct_and_visible() -> None:
    symbols = byte_symbols()
    assert len(set(symbols)) == 256
    assert not any(symbol.isspace() or not symbol.isprintable() for symbol in symbols)


def test_every_word_is_a_token() -> None:
    assert {word + "</w>" for word in WORDS} <= set(tiny_vocabulary()[0])
    assert {"completely", "black", "white", "red", "photo", "circle", "gradient"} <= set(WORDS)


def test_files(tmp_path: Path) -> None:
    write_tiny_vocabulary(tmp_path)
    tokens, merges = tiny_vocabulary()
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary, key=vocabulary.__getitem__) == list(tokens)
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == [f"{first} {second}" for first, second in merges]
