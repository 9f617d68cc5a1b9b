"""Token ids, chunks and padding (S Tab. 1; N §4.2)."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from transformers import CLIPTokenizer

from refimpl.errors import InputError
from refimpl.text.tiny_vocabulary import WORDS, tiny_vocabulary, write_tiny_vocabulary
from refimpl.text.tokenizer import CHUNK_TOKENS, load_tokenizer, tiny_tokenizer
from tests import strategies
from tests.conforming import conforms

TOKENIZER = tiny_tokenizer()
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id


def test_special_ids_are_clips() -> None:
    size = len(tiny_vocabulary()[0])
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id) == (size - 2, size - 1)
    assert TOKENIZER.pad_l_id == TOKENIZER.eos_id
    assert TOKENIZER.pad_g_id == 0
    assert TOKENIZER.vocabulary_size == size


def test_each_known_word_is_one_token_in_any_case() -> None:
    for word in WORDS:
        assert len(TOKENIZER.ids(word)) == 1
        assert TOKENIZER.ids(word.upper()) == TOKENIZER.ids(word)
    assert len(TOKENIZER.ids("completely black, one red circle")) == 6


@given(prompt=strategies.prompts())
def test_any_text_tokenises_within_the_vocabulary(prompt: str) -> None:
    ids = TOKENIZER.ids(prompt)
    assert all(0 <= index < TOKENIZER.vocabulary_size for index in ids)
    # One vocabulary serves both towers, and chunking loses nothing, not even an EOS that is spelled out.
    chunks = TOKENIZER.chunks(prompt)
    assert [index for chunk in chunks for index in chunk] == ids
    assert all(len(chunk) == CHUNK_TOKENS for chunk in chunks[:-1])


@pytest.mark.parametrize("check", ["framed", "complete", "fewest", "padding"])
def test_rows_are_those_of_the_published_encoders(check: str) -> None:
    conforms(f"chunks.{check}")


@given(prompt=strategies.prompts())
def test_a_short_prompt_has_the_row_that_transformers_makes(prompt: str) -> None:
    expected = TOKENIZER.clip(prompt, padding="max_length", max_length=77, truncation=True)["input_ids"]
    chunks = TOKENIZER.chunks(prompt)
    row_l, row_g = TOKENIZER.rows_l(chunks), TOKENIZER.rows_g(chunks)
    assert row_l.shape == row_g.shape == (len(chunks), 77)
    assert row_l.dtype == torch.int64
    assert row_l[0].tolist() == expected
    padding = torch.arange(77) > torch.tensor([len(chunk) + 1 for chunk in chunks])[:, None]
    assert torch.equal(row_l[~padding], row_g[~padding])
    assert not row_g[padding].any()


def test_the_empty_prompt_is_one_empty_chunk() -> None:
    for prompt in ("", " \t\n"):
        assert TOKENIZER.chunks(prompt) == [()]
    assert TOKENIZER.rows_g([()])[0].tolist() == [BOS, EOS] + [0] * 75


@pytest.mark.parametrize(
    ("words", "counts"), [(75, [75]), (76, [75, 1]), (151, [75, 75, 1]), (400, [75] * 5 + [25])]
)
def test_chunk_boundaries(words: int, counts: list[int]) -> None:
    assert [len(chunk) for chunk in TOKENIZER.chunks("red " * words)] == counts


def test_long_prompts_are_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        clip = dataclasses.replace(TOKENIZER).clip
        clip.model_max_length = 77
        assert len(TOKENIZER.ids("red " * 400)) == 400
    assert not caplog.records


def test_saved_folder_loads_the_same(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    assert {"vocab.json", "merges.txt"} <= {path.name for path in tmp_path.iterdir()}
    loaded = load_tokenizer(tmp_path)
    text = "A completely Black photo of naïve 日本 zebras <|endoftext|> " + "red " * 90
    assert loaded.chunks(text) == TOKENIZER.chunks(text)
    assert (loaded.bos_id, loaded.eos_id, loaded.vocabulary_size) == (BOS, EOS, TOKENIZER.vocabulary_size)


def test_a_truncating_folder_still_gives_every_token(tmp_path: Path) -> None:
    # Some published folders were saved with truncation and padding enabled.
    write_tiny_vocabulary(tmp_path)
    clip = CLIPTokenizer.from_pretrained(str(tmp_path), local_files_only=True, model_max_length=77)
    clip("red", truncation=True, max_length=77, padding="max_length")
    clip.save_pretrained(str(tmp_path))
    assert len(load_tokenizer(tmp_path).ids("red " * 400)) == 400


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "not found"),
        ({"vocab.json": "{}"}, "not found"),
        ({"vocab.json": "{", "merges.txt": ""}, "cannot be read"),
        ({"tokenizer.json": "{}"}, "cannot be read"),
        ({"tokenizer.json": ""}, "cannot be read"),
        ({"vocab.json": '{"a</w>": 0}', "merges.txt": "#version: 0.2\n"}, "cannot be read"),
        (
            {"vocab.json": '{"a</w>": 0, "<|endoftext|>": 1}', "merges.txt": "#version: 0.2\n"},
            "lacks plain characters",
        ),
    ],
)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(InputError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("prompt", [None, 3, b"red", ["red"]])
def test_anything_but_a_str_is_refused(prompt) -> None:
    with pytest.raises(InputError, match="expected a str"):
        TOKENIZER.ids(prompt)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        TOKENIZER.ids("red \ud83d circle")
