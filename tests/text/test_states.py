"""Cached text states: the same bits as encoding anew, however small the cache."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.text import states
from refimpl.text.conditioning import encode_prompts, null_condition
from refimpl.text.config import TextConfig
from refimpl.text.states import TextStates
from refimpl.text.towers import Towers

LONG = " ".join(["red"] * 80)  # two chunks
PROMPTS = ("red circle", "", "blue square", LONG, "a " * 200)


@pytest.fixture(scope="module")
def towers() -> Towers:
    return TextConfig(towers="tiny").load()


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(1, 6),
)
def test_remembering_changes_no_bit(towers: Towers, batches: list[list[str]], capacity: int) -> None:
    remembered = TextStates(towers, "mean", capacity)
    for batch in batches:
        context, pooled = remembered(batch)
        wanted, wanted_pooled = encode_prompts(batch, *towers)
        assert torch.equal(context, wanted)
        assert torch.equal(pooled, wanted_pooled)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_pooling_is_the_one_asked_for(towers: Towers, pooling: str) -> None:
    _, pooled = TextStates(towers, pooling, 4)([LONG])
    assert torch.equal(pooled, encode_prompts([LONG], *towers, pooling=pooling)[1])


def test_what_is_remembered_is_not_encoded_again(towers: Towers, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[tuple[str, Any]] = []

    def counting(prompts: Sequence[str], *rest: Any, **options: Any) -> Any:
        encoded.extend((prompt, options["chunks"]) for prompt in prompts)
        return encode_prompts(prompts, *rest, **options)

    monkeypatch.setattr(states, "encode_prompts", counting)
    remembered = TextStates(towers, "mean", 2)
    for prompt in ("a", "b", "a", "c", "a", "b", "c"):
        remembered([prompt])
    assert [prompt for prompt, _ in encoded] == ["a", "b", "c", "b", "c"]  # b made way for c, then c for b
    encoded.clear()
    remembered(["c", LONG])
    assert encoded == [("c", 2), (LONG, 2)]  # beside a long prompt a short one has other states
    assert not any(tensor.requires_grad for tensor in remembered(["c"]))


def test_what_is_lacking_is_encoded_together(towers: Towers, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def counting(prompts: Sequence[str], *rest: Any, **options: Any) -> Any:
        calls.append(list(prompts))
        return encode_prompts(prompts, *rest, **options)

    monkeypatch.setattr(states, "encode_prompts", counting)
    remembered = TextStates(towers, "mean", 3)
    for batch in (["a", "b", "a", LONG], ["a", "b"], ["c", "b", "a", "d", "e"], ["b"]):
        context, pooled = remembered(batch)
        wanted, wanted_pooled = encode_prompts(batch, *towers)
        assert torch.equal(context, wanted)
        assert torch.equal(pooled, wanted_pooled)
    assert calls == [["a", "b", LONG], ["a", "b"], ["c", "d", "e"], ["b"]]


@pytest.mark.parametrize("prompts", [[], "red", [3]])
def test_what_is_no_list_of_prompts_is_refused(towers: Towers, prompts: Any) -> None:
    with pytest.raises(InputError):
        TextStates(towers, "mean", 2)(prompts)


def test_trained_towers_are_asked_anew_and_get_gradients(towers: Towers) -> None:
    tokenizer, encoder_l, encoder_g = TextConfig(towers="tiny").load()
    assert encoder_l is not None
    encoder_g.requires_grad_(True)
    trained = TextStates((tokenizer, encoder_l, encoder_g), "mean", 2, trained=True)
    before, null = trained(["red", LONG]), trained.null("empty")
    (before[0].sum() + before[1].sum() + null[1].sum()).backward()
    assert encoder_g.text_projection.weight.grad is not None
    assert torch.equal(before[0], encode_prompts(["red", LONG], *towers)[0])
    with torch.no_grad():
        encoder_g.text_projection.weight.mul_(2)
    assert torch.equal(trained(["red", LONG])[1], 2 * before[1])
    assert torch.equal(trained.null("empty")[1], 2 * null[1])
    assert not trained.null("zeros")[1].any()


@pytest.mark.parametrize("kind", ["zeros", "empty"])
def test_the_null_of_frozen_towers_is_made_once(towers: Towers, kind: str) -> None:
    remembered = TextStates(towers, "mean", 2)
    first, again = remembered.null(kind), remembered.null(kind)
    assert first[0] is again[0]
    for state, wanted in zip(first, null_condition(kind, *towers), strict=True):
        assert torch.equal(state, wanted)
    assert not first[0].requires_grad
