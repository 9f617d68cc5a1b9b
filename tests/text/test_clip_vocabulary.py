"""CLIP's own vocabulary: our ids against OpenCLIP's, prompt by prompt, with and without its cleaning."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from refimpl.errors import InputError
from refimpl.interop.diffusers_folder.tokenizers import write_tokenizers
from refimpl.text.cleaning import CLEANINGS, check_cleaning, cleaned, cleaning_identity
from refimpl.text.tokenizer import Tokenizer, load_tokenizer
from tests.oracles import open_clip_tokenizer, write_clip_vocabulary
from tests.text.prompts_by_kind import KINDS, prompts_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "tokenizer.md"
BANG = 256  # "!" at the end of a word; id 0 is "!" within one


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("clip")
    write_clip_vocabulary(folder)
    return load_tokenizer(folder)


def theirs(text: str) -> list[int]:
    return open_clip_tokenizer()._tokenizer.encode(text)


def test_the_vocabulary_is_clips(clip: Tokenizer) -> None:
    assert (clip.bos_id, clip.eos_id, clip.vocabulary_size) == (49406, 49407, 49408)
    assert (clip.pad_l_id, clip.pad_g_id) == (49407, 0)
    assert clip.ids("a photo of a cat") == [320, 1125, 539, 320, 2368]


@pytest.mark.parametrize("kind", KINDS)
def test_cleaned_alike_all_ids_are_openclips(clip: Tokenizer, kind: str) -> None:
    ours = replace(clip, clean="openclip")
    clean = open_clip_tokenizer().get_clean_fn("lower")
    for prompt in prompts_of(kind):
        expected = theirs(prompt)
        assert ours.ids(prompt) == expected, ascii(prompt)
        assert clip.ids(clean(prompt)) == expected, ascii(prompt)  # theirs, for the tokenizer alone


def test_there_are_thousands_of_different_prompts() -> None:
    prompts = {prompt for kind in KINDS for prompt in prompts_of(kind)}
    assert sum(count for count, _ in KINDS.values()) >= 5000
    assert len(prompts) >= 5000
    assert prompts_of("emoji") == prompts_of("emoji")


def test_the_documented_counts(clip: Tokenizer) -> None:
    """Prompts of each kind whose ids differ where nothing is cleaned, as docs/tokenizer.md has them."""
    table = re.findall(
        r"^\| ([^|]+?) \| +(\d+) \| +(\d+) \| +(\d+) \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE
    )
    documented = {kind: tuple(map(int, numbers)) for kind, *numbers in table}
    found = {}
    for kind in KINDS:
        prompts = prompts_of(kind)
        differing = sum(clip.ids(prompt) != theirs(prompt) for prompt in prompts)
        found[kind] = (len(prompts), differing, 0)
    total = tuple(map(sum, zip(*found.values(), strict=True)))
    assert documented == {**found, "all": total}


def test_a_chunk_is_openclips_row(clip: Tokenizer) -> None:
    """BOS, ids, EOS and zeros, as its towers were trained on."""
    prompts = ["", "a cat!", "red " * 75]
    rows = open_clip_tokenizer().tokenize(prompts)
    for prompt, row in zip(prompts, rows, strict=True):
        assert clip.rows_g(clip.chunks(prompt))[0].tolist() == row.tolist()


def test_what_stays_different_is_what_the_documentation_says(clip: Tokenizer) -> None:
    ours = replace(clip, clean="openclip")
    assert ours.ids("<|endoftext|>") == [49407]
    assert theirs("<|endoftext|>") == [27, 347, 40786, 4160, 91, 285]
    assert theirs("<end_of_text>") == [49407]
    for letter in ("T\u0308", "W\u030a", "'ſ"):
        assert ours.ids(letter) != theirs(letter)


def test_an_exclamation_mark_is_a_word_but_for_diffusers(clip: Tokenizer, tmp_path: Path) -> None:
    assert clip.ids("a cat!") == theirs("a cat!") == [320, 2368, BANG]
    write_tokenizers(clip, tmp_path, ("tokenizer", "tokenizer_2"))
    assert json.loads((tmp_path / "tokenizer_2" / "tokenizer_config.json").read_text())["pad_token"] == "!"
    diffusers = [load_tokenizer(tmp_path / name).ids("a cat!") for name in ("tokenizer", "tokenizer_2")]
    assert diffusers == [[320, 2368, BANG], [320, 2368, 0]]


@pytest.mark.parametrize("how", CLEANINGS)
def test_cleaning_is_noted_where_states_are_kept(how: str) -> None:
    noted = cleaning_identity(how)
    assert set(noted) == (set() if how == "none" else {"clean", "ftfy"})
    assert cleaned("  A&amp;amp;B\n“c” ", how) == ("  A&amp;amp;B\n“c” " if how == "none" else 'a&b "c"')


def test_entities_are_resolved_twice_where_ftfy_leaves_them() -> None:
    """It leaves those of a text with a tag in it."""
    text = "<b>&amp;amp;amp;"
    assert cleaned(text, "openclip") == open_clip_tokenizer().get_clean_fn("lower")(text) == "<b>&amp;"


def test_without_ftfy_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "ftfy", None)
    check_cleaning("none")
    assert cleaned("A", "none") == "A"
    for use in (check_cleaning, cleaning_identity, lambda how: cleaned("A", how)):
        with pytest.raises(InputError, match=r'needs ftfy: pip install "ftfy>=6.1", or set text.clean'):
            use("openclip")
