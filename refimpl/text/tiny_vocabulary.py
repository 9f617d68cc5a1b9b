"""A small byte-level BPE vocabulary in CLIP's layout, built in code (CLIP's own is not ours to ship)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
END_OF_WORD = "</w>"

_CAPTION_WORDS = """
a an the and of with in on at by from to is are no one two three four five six many few some

completely pure plain solid flat empty blank uniform single simple abstract
black white red green blue yellow orange purple pink brown grey gray cyan magenta teal navy gold silver
dark light bright pale deep vivid saturated muted pastel warm cool colour color colours colors colourful
monochrome gradient background foreground horizontal vertical diagonal radial smooth striped stripes dots
checkerboard checkered grid pattern texture noise

circle circles square squares rectangle triangle triangles star ring disc disk line lines cross ellipse oval
diamond hexagon polygon arc dot shape shapes small large big tiny huge medium thin thick filled outline
outlined left right top bottom upper lower centre center middle corner edge side above below inside outside
near between behind

photo photograph photography picture image illustration drawing painting artwork art scene portrait landscape
closeup close up view crop detail wide tall panorama aerial indoors outdoors
person people woman man girl boy face hair eyes smile hand astronaut suit helmet flag
animal cat dog bird horse fish tabby whiskers fur
sky cloud clouds sun moon night day stars space galaxy galaxies rocket launch smoke fire water sea river lake
snow ice mountain hill field grass gravel stone rock sand brick wall tree trees forest leaf leaves flower
flowers petal petals garden plant dahlia
house building temple palace tower roof window door street city bridge road car motorcycle wheel clock camera
tripod coin coins cup coffee spoon saucer table book page text letter letters sign paper
tissue cell cells retina eye microscope stained medical scientific skin
character artist style general rating safe quality best good normal high low resolution blurry sharp soft
"""

WORDS = tuple(_CAPTION_WORDS.split())
"""Words from the demo's captions and similar ones; each is one token."""


@lru_cache(maxsize=1)
def tiny_vocabulary() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Tokens by id, and merges by rank.

    The layout is CLIP's: 256 byte symbols, the same with the end-of-word mark, one token per merge, BOS, EOS.
    Each of WORDS is one token; any other text is split into subwords, at worst into bytes.
    """
    alphabet = byte_symbols()
    merges = _learn_merges(WORDS)
    tokens = (*alphabet, *(s + END_OF_WORD for s in alphabet), *(a + b for a, b in merges), BOS, EOS)
    return tokens, merges


def write_tiny_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt, the files of a CLIP tokenizer folder."""
    tokens, merges = tiny_vocabulary()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def byte_symbols() -> tuple[str, ...]:
    """One printable character for each byte, in byte-level BPE's order (Radford et al. 2019, §2.2).

    Printable Latin-1 bytes represent themselves and come first; the others follow as U+0100, U+0101, ...
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len(set(range(256)) - set(printable))
    return tuple(map(chr, [*printable, *range(0x100, 0x100 + others)]))


def _learn_merges(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Merge the most frequent adjacent pair until every word is one token (Sennrich et al. 2016, Alg. 1).

    Encoding applies the merges in this order, so a learnt word always ends up whole. Ties go to the pair that
    sorts first, so that the vocabulary is the same everywhere.
    """
    pieces = [(*word[:-1], word[-1] + END_OF_WORD) for word in dict.fromkeys(words)]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for word in pieces for pair in pairwise(word))
        if not counts:
            return tuple(merges)
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merge(word, best) for word in pieces]


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    if pair[0] not in word:
        return word
    merged: list[str] = []
    position = 0
    while position < len(word):
        width = 2 if word[position : position + 2] == pair else 1
        merged.append("".join(word[position : position + width]))
        position += width
    return tuple(merged)
