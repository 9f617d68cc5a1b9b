"""Prompts and sizes → the network's conditioning (S §2.2, Tab. 1; N §4.2)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from refimpl.errors import InputError
from refimpl.text import conditioning
from refimpl.text.conditioning import (
    apply_dropout,
    chunk_counts,
    default_rows,
    encode_prompts,
    null_condition,
    size_embedding,
    vector_conditioning,
)
from refimpl.text.encoders import penultimate_and_pooled, tiny_encoders
from refimpl.text.sinusoid import sinusoidal_features
from refimpl.text.tokenizer import tiny_tokenizer
from tests import strategies, tolerances
from tests.conforming import conforms

TOKENIZER = tiny_tokenizer()
ENCODER_L, ENCODER_G = tiny_encoders()
TOWERS = (TOKENIZER, ENCODER_L, ENCODER_G)
COLOURS = ["completely black", "completely white", "completely red", "completely green", "completely blue"]
LONG = "a red circle on a blue background " * 30  # 210 tokens, 3 chunks
LONG_PARTS = [" ".join(LONG.split()[i : i + 75]) for i in range(0, 210, 75)]


def encode(prompts: list[str], **options) -> tuple[torch.Tensor, torch.Tensor]:
    return encode_prompts(prompts, *TOWERS, **options)


EMPTY = encode([""])
THREE = encode(["red", LONG, "completely black"])


def test_one_chunk_is_transformers_own() -> None:
    prompt = "a photo of a cat, 日本 zebra"
    ids_l = TOKENIZER.clip(prompt, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    after = torch.arange(77) > (ids_l[0] == TOKENIZER.eos_id).int().argmax()
    ids_g = ids_l.masked_fill(after, 0)
    state_l = ENCODER_L(ids_l, output_hidden_states=True).hidden_states[-2]
    output_g = ENCODER_G(ids_g, output_hidden_states=True)
    context, pooled = encode([prompt])
    assert torch.equal(context, torch.cat((state_l, output_g.hidden_states[-2]), dim=-1))
    assert torch.equal(pooled, output_g.text_embeds)
    assert context.shape == (1, 77, 96)
    assert pooled.shape == (1, 64)


def test_a_tokenizer_of_transformers_gets_the_paddings_of_the_towers() -> None:
    for prompts in (["red"], ["", LONG]):
        ours, theirs = encode(prompts), encode_prompts(prompts, TOKENIZER.clip, ENCODER_L, ENCODER_G)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "tokenizer", [None, "clip", PreTrainedTokenizerFast(tokenizer_object=Backend(WordLevel()))]
)
def test_anything_but_a_clip_tokenizer_is_refused(tokenizer) -> None:
    with pytest.raises(InputError, match="has no BOS and EOS; give one from load_tokenizer"):
        encode_prompts(["red"], tokenizer, ENCODER_L, ENCODER_G)


def test_pooling_is_each_prompts_own_mean() -> None:
    conforms("pool.of_one_chunk", within=0)
    conforms("pool.batch_independent")
    conforms("pool.of_several", within=tolerances.FLOAT32_ROUNDING)


def test_a_long_prompt_is_its_chunks_in_order() -> None:
    context, pooled = encode([LONG])
    part_context, part_pooled = encode(LONG_PARTS)
    assert context.shape == (1, 3 * 77, 96)
    assert torch.equal(context[0], part_context.flatten(0, 1))
    assert torch.equal(pooled[0], part_pooled.mean(dim=0))
    assert torch.equal(encode([LONG], pooling="first")[1][0], part_pooled[0])
    assert not torch.equal(part_pooled[0], part_pooled.mean(dim=0))


@settings(max_examples=20)
@given(
    prompts=st.lists(strategies.prompts(), min_size=1, max_size=4),
    pooling=st.sampled_from(("mean", "first")),
    data=st.data(),
)
def test_a_prompt_never_depends_on_its_batch_mates(
    prompts: list[str], pooling: str, data: st.DataObject
) -> None:
    counts = chunk_counts(prompts, TOKENIZER)
    context, pooled = encode(prompts, pooling=pooling)
    total = max(counts)
    assert context.shape == (len(prompts), 77 * total, 96)
    assert context.isfinite().all()
    i = data.draw(st.integers(0, len(prompts) - 1))
    alone, alone_pooled = encode([prompts[i]], pooling=pooling)
    assert torch.equal(pooled[i], alone_pooled[0])
    own = 77 * counts[i]
    assert torch.equal(context[i, :own], alone[0])
    assert torch.equal(context[i, own:], EMPTY[0][0].repeat(total - counts[i], 1))


@settings(max_examples=10)
@given(prompt=strategies.prompts(), mate=strategies.prompts(), more=st.integers(0, 2))
def test_at_a_fixed_number_of_chunks_all_of_it_depends_on_the_prompt_alone(
    prompt: str, mate: str, more: int
) -> None:
    chunks = max(chunk_counts([prompt, mate], TOKENIZER)) + more
    both, alone = encode([mate, prompt], chunks=chunks), encode([prompt], chunks=chunks)
    assert both[0].shape == (2, 77 * chunks, 96)
    for ours, expected in zip(both, alone, strict=True):
        assert torch.equal(ours[1], expected[0])


@pytest.mark.parametrize("rows_per_call", [2, 3, 64])
def test_more_chunks_per_call_change_only_rounding(rows_per_call: int) -> None:
    prompts = [*COLOURS, LONG, "", COLOURS[0]]
    for many, one in zip(encode(prompts, rows_per_call=rows_per_call), encode(prompts), strict=True):
        torch.testing.assert_close(many, one, rtol=0, atol=tolerances.TRANSFORMER_FLOAT32)


@pytest.mark.parametrize(("rows_per_call", "calls"), [(1, 7), (4, 2), (16, 1)])
def test_every_call_of_the_towers_has_as_many_rows(
    rows_per_call: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven distinct chunks; a matrix product of another shape may round in another way."""
    seen: list[tuple[int, int]] = []
    for name in ("penultimate_state", "penultimate_and_pooled"):
        original = getattr(conditioning, name)

        def tower(encoder, ids, *rest, original=original):
            seen.append(tuple(ids.shape))
            return original(encoder, ids, *rest)

        monkeypatch.setattr(conditioning, name, tower)
    encode([*COLOURS[:3], LONG, COLOURS[0], ""], rows_per_call=rows_per_call)
    assert seen == [(rows_per_call, 77)] * 2 * calls


def test_the_cpu_encodes_one_row_at_a_time_and_a_gpu_many() -> None:
    assert default_rows(torch.device("cpu")) == 1
    assert default_rows(torch.device("cuda", 1)) == conditioning.ROWS_ON_A_GPU > 1


def test_a_prompt_is_pooled_at_its_first_eos() -> None:
    """The token may be spelled out in the text; CLIP's states end there."""
    prompt = f"red {TOKENIZER.clip.eos_token} blue"
    (chunk,) = TOKENIZER.chunks(prompt)
    assert TOKENIZER.eos_id in chunk
    _, pooled = penultimate_and_pooled(ENCODER_G, TOKENIZER.rows_g([chunk]), TOKENIZER.eos_id)
    assert torch.equal(encode([prompt])[1], pooled)


def test_encoding_is_repeatable_and_each_distinct_chunk_is_encoded_once() -> None:
    calls = []
    handle = ENCODER_G.register_forward_pre_hook(lambda *_: calls.append(1))
    first = encode(["red", "red", "", LONG])
    handle.remove()
    assert len(calls) == 5  # red, the empty chunk, three of LONG
    second = encode(["red", "red", "", LONG])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_random_towers_tell_colours_apart_at_unit_scale(seed: int) -> None:
    context, pooled = encode_prompts([*COLOURS, "", "a photo of a cat"], TOKENIZER, *tiny_encoders(seed))
    low, high = tolerances.UNIT_SCALE
    for state in (context[..., :32], context[..., 32:], pooled):
        assert low < state.square().mean().sqrt() < high
    colours = pooled[: len(COLOURS)]
    distance = (colours[:, None] - colours[None]).square().mean(dim=-1).sqrt()
    assert distance[~torch.eye(len(COLOURS), dtype=torch.bool)].min() > tolerances.SEPARATE_COLOURS
    words = context[: len(COLOURS), 2]  # BOS, completely, the colour
    distance = (words[:, None] - words[None]).square().mean(dim=-1).sqrt()
    assert distance[~torch.eye(len(COLOURS), dtype=torch.bool)].min() > low


def test_frozen_encoders_leave_no_graph_and_trainable_ones_do() -> None:
    assert not encode(["red"])[0].requires_grad
    encoder_l, encoder_g = tiny_encoders()
    encoder_g.requires_grad_(True)
    context, pooled = encode_prompts(["red", LONG], TOKENIZER, encoder_l, encoder_g)
    (context.sum() + pooled.sum()).backward()
    gradient = encoder_g.text_projection.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_low_precision_encoders() -> None:
    encoder_l, encoder_g = (encoder.bfloat16() for encoder in tiny_encoders())
    context, pooled = encode_prompts(["red", LONG], TOKENIZER, encoder_l, encoder_g)
    assert context.dtype == pooled.dtype == torch.bfloat16
    firsts = encode_prompts(LONG_PARTS, TOKENIZER, encoder_l, encoder_g)[1]
    assert torch.equal(pooled[1], firsts.float().mean(dim=0).bfloat16())  # averaged in float32


def test_null_condition() -> None:
    context, pooled = null_condition("empty", *TOWERS)
    assert torch.equal(context, EMPTY[0])
    assert torch.equal(pooled, EMPTY[1])
    zeros = null_condition("zeros", *TOWERS)
    assert [tuple(state.shape) for state in zeros] == [(1, 77, 96), (1, 64)]
    assert not any(state.any() for state in zeros)
    with pytest.raises(InputError, match="kind is 'none'; choose one of zeros, empty"):
        null_condition("none", *TOWERS)


@pytest.mark.parametrize("kind", ["zeros", "empty"])
@settings(max_examples=8)  # all there are
@given(drop=st.lists(st.booleans(), min_size=3, max_size=3))
def test_dropout_replaces_the_marked_and_nothing_else(kind: str, drop: list[bool]) -> None:
    context, pooled = (state.clone() for state in THREE)
    null = null_condition(kind, *TOWERS)
    dropped_context, dropped_pooled = apply_dropout(context, pooled, torch.tensor(drop), null)
    assert torch.equal(context, THREE[0])
    assert torch.equal(pooled, THREE[1])
    for i, gone in enumerate(drop):
        expected = (null[0][0].repeat(3, 1), null[1][0]) if gone else (context[i], pooled[i])
        assert torch.equal(dropped_context[i], expected[0])
        assert torch.equal(dropped_pooled[i], expected[1])


def test_dropping_to_the_empty_prompt_is_encoding_the_empty_prompt() -> None:
    context, pooled = encode([LONG])
    dropped = apply_dropout(context, pooled, torch.tensor([True]), null_condition("empty", *TOWERS))
    for ours, expected in zip(dropped, encode([""], chunks=3), strict=True):
        assert torch.equal(ours, expected)


def test_dropout_refuses_what_does_not_fit() -> None:
    context, pooled = encode(["red", "blue"])
    null = null_condition("zeros", *TOWERS)
    for drop in (torch.tensor([True]), torch.tensor([1, 0]), torch.tensor([[True, False]])):
        with pytest.raises(InputError, match=r"drop must be bool \[2\]"):
            apply_dropout(context, pooled, drop, null)
    drop = torch.tensor([True, False])
    for wrong in (
        (null[0][..., :5], null[1]),
        (null[0], null[1][:, :5]),
        (null[0].repeat(1, 2, 1), null[1]),
    ):
        with pytest.raises(InputError, match="does not fit"):
            apply_dropout(context, pooled, drop, wrong)


SIZES = torch.tensor([[1216, 832, 0, 12, 1216, 832], [1217, 832, 0, 12, 1216, 832]])


def test_sizes_are_embedded_one_by_one_in_order() -> None:
    embedding = size_embedding(SIZES)
    assert embedding.shape == (2, 1536)
    assert embedding.dtype == torch.float32
    for column in range(6):
        expected = sinusoidal_features(SIZES[:, column])
        assert torch.equal(embedding[:, 256 * column : 256 * (column + 1)], expected)
    assert torch.equal(size_embedding(SIZES.float()), embedding)


def test_vector_width_is_sdxls() -> None:
    pooled = torch.randn(2, 1280, generator=torch.Generator().manual_seed(0))
    vector = vector_conditioning(pooled, SIZES)
    assert vector.shape == (2, 2816)
    assert torch.equal(vector[:, :1280], pooled)
    assert torch.equal(vector[:, 1280:], size_embedding(SIZES))
    assert vector_conditioning(pooled, SIZES[:, :5]).shape == (
        2,
        2560,
    )  # the refiner's: four sizes and a score
    assert vector_conditioning(torch.zeros(0, 64), torch.zeros(0, 6, dtype=torch.int64)).shape == (0, 1600)


def test_a_score_takes_the_place_of_the_target_size() -> None:
    """S §2.5: original h, w; crop top, left; aesthetic score, which need not be whole."""
    pooled, scores = torch.zeros(2, 1280), torch.tensor([6.0, 2.5])
    vector = vector_conditioning(pooled, SIZES, scores)
    assert vector.shape == (2, 2560)
    numbers = torch.cat((SIZES[:, :4].float(), scores[:, None]), dim=1)
    assert torch.equal(vector[:, 1280:], size_embedding(numbers))
    assert not torch.equal(vector[0, -256:], vector[1, -256:])
    for wrong in (scores[:1], scores[:, None]):
        with pytest.raises(InputError, match=r"scores .* must be \[B\], one for each of 2"):
            vector_conditioning(pooled, SIZES, wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_1217_and_1216_stay_apart_under_autocast(dtype: torch.dtype) -> None:
    pooled = torch.zeros(2, 64, dtype=dtype)
    expected = size_embedding(SIZES).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        vector = vector_conditioning(pooled, SIZES)
    assert vector.dtype == dtype
    assert torch.equal(vector[:, 64:], expected)
    assert not torch.equal(vector[0], vector[1])


def test_sizes_that_lost_their_value_are_refused() -> None:
    assert SIZES.bfloat16()[1, 0] == 1216  # the fault that the refusal is for
    with pytest.raises(InputError, match=r"values are torch\.bfloat16"):
        vector_conditioning(torch.zeros(2, 64), SIZES.bfloat16())
    with pytest.raises(InputError, match=r"expected \[B, 6\], got \[6\]"):
        size_embedding(SIZES[0])
    with pytest.raises(InputError, match="with equal B"):
        vector_conditioning(torch.zeros(3, 64), SIZES)
    with pytest.raises(InputError, match="with equal B"):
        vector_conditioning(torch.zeros(64), SIZES)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("red", {}, "the single str 'red'"),
        ([], {}, "the list is empty"),
        (None, {}, "expected a list of str, got NoneType"),
        (iter(["red"]), {}, "expected a list of str"),
        (["red", 3], {}, "expected a str, got int"),
        (["red", None], {}, "expected a str, got NoneType"),
        (["\ud800"], {}, "not valid Unicode"),
        (["red"], {"pooling": "max"}, "pooling is 'max'; choose one of mean, first"),
        (["red", LONG], {"chunks": 2}, "chunks is 2, but the prompt 'a red circle.* fills 3"),
        (["red"], {"chunks": 0}, "chunks is 0"),
        (["red"], {"rows_per_call": 0}, "rows_per_call is 0"),
    ],
)
def test_bad_prompts_and_options_are_refused(prompts, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(prompts, **options)


def test_chunk_counts() -> None:
    assert chunk_counts(["", "red", "red " * 75, "red " * 76, "red " * 400], TOKENIZER) == [1, 1, 1, 2, 6]
    with pytest.raises(InputError, match="single str"):
        chunk_counts("red", TOKENIZER)


def test_an_encoder_of_another_vocabulary_is_refused() -> None:
    encoder_l, encoder_g = tiny_encoders()
    encoder_g.config.vocab_size = 100
    with pytest.raises(InputError, match="CLIPTextModelWithProjection has 100 tokens"):
        encode_prompts(["red"], TOKENIZER, encoder_l, encoder_g)
