"""The two text encoders: sizes, states and pooling against transformers' own (S Tab. 1)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from refimpl.errors import InputError
from refimpl.text.encoders import (
    CLIP_BIGG_PARAMETERS,
    CLIP_L_PARAMETERS,
    clip_bigg_config,
    clip_l_config,
    first_eos,
    load_encoders,
    penultimate_and_pooled,
    penultimate_state,
    tiny_encoders,
)
from refimpl.text.tokenizer import tiny_tokenizer
from tests import tolerances

TOKENIZER = tiny_tokenizer()
PROMPTS = ["", "completely black", "a red circle on a blue background", "photo " * 75, "zebra! 日本"]
CHUNKS = [TOKENIZER.chunks(prompt)[0] for prompt in PROMPTS]


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_published_sizes() -> None:
    with torch.device("meta"):
        encoder_l = CLIPTextModel(clip_l_config())
        encoder_g = CLIPTextModelWithProjection(clip_bigg_config())
    assert parameters(encoder_l) == CLIP_L_PARAMETERS == 123_060_480
    assert parameters(encoder_g) == CLIP_BIGG_PARAMETERS == 694_659_840
    assert encoder_l.config.hidden_size + encoder_g.config.hidden_size == 2048
    assert encoder_g.text_projection.weight.shape == (1280, 1280)
    assert encoder_l.config.num_attention_heads * 64 == 768  # heads leave no trace in the counts
    assert encoder_g.config.num_attention_heads * 64 == 1280
    assert (encoder_l.config.hidden_act, encoder_g.config.hidden_act) == ("quick_gelu", "gelu")


def test_states_are_transformers_own() -> None:
    encoder_l, encoder_g = tiny_encoders()
    ids_l, ids_g = TOKENIZER.rows_l(CHUNKS), TOKENIZER.rows_g(CHUNKS)
    oracle_l = encoder_l(ids_l, output_hidden_states=True)
    oracle_g = encoder_g(ids_g, output_hidden_states=True)
    state_g, pooled = penultimate_and_pooled(encoder_g, ids_g, TOKENIZER.eos_id)
    assert torch.equal(penultimate_state(encoder_l, ids_l), oracle_l.hidden_states[-2])
    assert torch.equal(state_g, oracle_g.hidden_states[-2])
    # transformers pools at the first EOS if the config names the true EOS, as the tiny one does
    assert torch.equal(pooled, oracle_g.text_embeds)


def test_penultimate_is_before_the_last_layer_and_unnormalised() -> None:
    encoder, _ = tiny_encoders()
    ids = TOKENIZER.rows_l(CHUNKS)
    seen: dict[str, torch.Tensor] = {}
    last_layer = getattr(encoder, "text_model", encoder).encoder.layers[-1]
    last_layer.register_forward_pre_hook(lambda _, inputs: seen.update(state=inputs[0]))
    state = penultimate_state(encoder, ids)
    assert torch.equal(state, seen["state"])
    assert state.mean(dim=-1).abs().max() > tolerances.FLOAT32_ROUNDING  # a layer norm would make it 0


def test_pooled_does_not_read_the_config() -> None:
    # The published configs say eos_token_id 2, which makes transformers look for the largest id.
    _, encoder = tiny_encoders()
    ids = torch.tensor([[TOKENIZER.bos_id, 5, 2, TOKENIZER.eos_id, 0, TOKENIZER.eos_id] + [0] * 71])
    _, pooled = penultimate_and_pooled(encoder, ids, TOKENIZER.eos_id)
    for wrong in (2, TOKENIZER.bos_id):
        encoder.config.eos_token_id = wrong
        getattr(encoder, "text_model", encoder).eos_token_id = wrong
        _, again = penultimate_and_pooled(encoder, ids, TOKENIZER.eos_id)
        assert torch.equal(again, pooled)
    last = encoder(ids).last_hidden_state
    assert torch.equal(pooled, encoder.text_projection(last[:, 3]))
    # Nor is EOS the largest id once a vocabulary has grown.
    _, smaller = penultimate_and_pooled(encoder, ids, eos_id=5)
    assert torch.equal(smaller, encoder.text_projection(last[:, 1]))


def test_first_eos() -> None:
    ids = torch.tensor([[9, 7, 7, 7], [9, 1, 7, 7], [9, 8, 1, 7], [7, 9, 9, 9]])
    assert first_eos(ids, 7).tolist() == [1, 2, 3, 0]
    with pytest.raises(InputError, match=r"rows \[0, 2\] have no EOS \(id 7\)"):
        first_eos(torch.tensor([[9, 1], [7, 1], [1, 9]]), 7)


@pytest.mark.parametrize("place", ["l", "g"])
def test_a_token_changes_only_what_follows(place: str) -> None:
    encoder = dict(zip("lg", tiny_encoders(), strict=True))[place]
    rows = {"l": TOKENIZER.rows_l, "g": TOKENIZER.rows_g}[place]
    ids = rows([TOKENIZER.chunks("a red circle")[0], TOKENIZER.chunks("a red square")[0]])
    state = penultimate_state(encoder, ids)
    assert torch.equal(state[0, :3], state[1, :3])
    assert (state[0, 3:] != state[1, 3:]).any(dim=-1).all()


def test_tiny_encoders_are_a_function_of_the_seed() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = tiny_encoders(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = tiny_encoders(3), tiny_encoders(4)
    for a, b, c in zip(first, again, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))
    for encoder in first:
        assert not encoder.training
        assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_saved_encoders_load_bit_for_bit(tmp_path: Path) -> None:
    saved = tiny_encoders(1)
    for encoder, name in zip(saved, "lg", strict=True):
        encoder.save_pretrained(str(tmp_path / name))
    loaded = load_encoders(tmp_path / "l", tmp_path / "g")
    for ours, theirs in zip(saved, loaded, strict=True):
        assert not theirs.training
        assert not any(parameter.requires_grad for parameter in theirs.parameters())
        for (name, a), (same, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert name == same
            assert torch.equal(a, b)
    low, _ = load_encoders(tmp_path / "l", tmp_path / "g", torch.bfloat16)
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}


def test_published_spelling_of_the_keys_is_read(tmp_path: Path) -> None:
    # Published CLIP-L files prefix every key and contain position_ids; newer transformers write neither.
    saved = tiny_encoders(1)
    for encoder, name in zip(saved, "lg", strict=True):
        encoder.save_pretrained(str(tmp_path / name))
        weights = tmp_path / name / "model.safetensors"
        tensors = load_file(weights)
        plain = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
        published = {k if k.startswith("text_projection") else "text_model." + k: v for k, v in plain.items()}
        published["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(published, weights, metadata={"format": "pt"})
    for ours, theirs in zip(saved, load_encoders(tmp_path / "l", tmp_path / "g"), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_encoder_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for encoder, name in zip(tiny_encoders(), "lg", strict=True):
        encoder.save_pretrained(str(tmp_path / name))
    with pytest.raises(InputError, match=r"nowhere: config\.json not found"):
        load_encoders(tmp_path / "nowhere", tmp_path / "g")
    weights = tmp_path / "g" / "model.safetensors"
    tensors = load_file(weights)
    projection = tensors.pop("text_projection.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing tensors \['text_projection\.weight'\]"):
        load_encoders(tmp_path / "l", tmp_path / "g")
    save_file({**tensors, "text_projection.weight": projection[:5]}, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match="cannot be read"):
        load_encoders(tmp_path / "l", tmp_path / "g")
    weights.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(InputError, match="cannot be read"):
        load_encoders(tmp_path / "l", tmp_path / "g")
    weights.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_encoders(tmp_path / "l", tmp_path / "g")
    (tmp_path / "l" / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_encoders(tmp_path / "l", tmp_path / "g")
