"""Text and size conditioning of the network (S §2.1, §2.2; for long prompts, N §4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from refimpl.data.loading.transfer import onto
from refimpl.errors import InputError
from refimpl.text.config import NULL_KINDS, POOLINGS, SIZE_FEATURES
from refimpl.text.encoders import penultimate_and_pooled, penultimate_state
from refimpl.text.sinusoid import sinusoidal_features
from refimpl.text.tokenizer import ROW_TOKENS, Chunk, Tokenizer, as_tokenizer

ROWS_ON_A_GPU = 16  # chunks in one call of the towers, always: products of another shape round in another way


def chunk_counts(prompts: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """The number of 75-token chunks that each prompt takes, at least 1.

    Raises InputError on anything but a non-empty list of str.
    """
    return [len(tokenizer.chunks(prompt)) for prompt in _checked(prompts)]


def encode_prompts(
    prompts: Sequence[str],
    tokenizer: Tokenizer | PreTrainedTokenizerBase,
    encoder_l: CLIPTextModel | None,
    encoder_g: CLIPTextModelWithProjection,
    pooling: str = "mean",
    chunks: int | None = None,
    rows_per_call: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-attention context and pooled state of each prompt (S §2.1, N §4.2).

    prompts  B strings of any length
    tokenizer  see `load_tokenizer`; or a CLIPTokenizer of transformers, whose own padding is not used
    encoder_l  None for bigG's states only, as SDXL's refiner uses (S §2.5)
    pooling  "mean" over the sample's own chunks (N §4.2), or "first" chunk only, as some other tools do
    chunks   n; None takes the largest own count in this batch
    rows_per_call  chunks in each call of an encoder, filled up with empty ones; None takes `default_rows`. Another
                   number may change the last bit of a state
    returns  context [B, 77·n, D_l + D_g] (D_g without encoder_l), pooled [B, P], on the encoders' device and
             in their dtype

    A prompt's own chunks come first; they and its pooled state depend on that prompt alone. If n exceeds its own
    count, the rest is padded with the empty prompt's chunk. No attention mask hides the padding (nor does it in
    other tools), so the network attends to it: for network outputs that do not depend on the rest of the batch,
    pass a fixed `chunks`, or group prompts by `chunk_counts`.
    Raises InputError on a bare str, an empty list, an entry that is not a str, an unknown pooling, `chunks`
    below a prompt's own count, or a vocabulary larger than an encoder's.
    """
    if pooling not in POOLINGS:
        raise InputError(f"encode_prompts: pooling is {pooling!r}; choose one of {', '.join(POOLINGS)}")
    if rows_per_call is None:
        rows_per_call = default_rows(encoder_g.device)
    if rows_per_call < 1:
        raise InputError(f"encode_prompts: rows_per_call is {rows_per_call}; it must be at least 1")
    tokenizer = as_tokenizer(tokenizer)
    own = [tokenizer.chunks(prompt) for prompt in _checked(prompts)]
    longest = max(map(len, own))
    total = longest if chunks is None else chunks
    if total < longest:
        prompt = prompts[max(range(len(own)), key=lambda i: len(own[i]))]
        raise InputError(
            f"encode_prompts: chunks is {chunks}, but the prompt {prompt[:60]!r}... fills {longest}; "
            "shorten it or raise chunks"
        )
    _check_vocabulary(tokenizer, encoder_l, encoder_g)

    empty: Chunk = ()
    padded = [[*sample, *([empty] * (total - len(sample)))] for sample in own]
    distinct = list(dict.fromkeys(chunk for sample in padded for chunk in sample))
    groups = [distinct[first : first + rows_per_call] for first in range(0, len(distinct), rows_per_call)]
    groups[-1] = groups[-1] + [empty] * (rows_per_call - len(groups[-1]))
    device, eos = encoder_g.device, tokenizer.eos_id
    encoded = [
        penultimate_and_pooled(encoder_g, onto(device, tokenizer.rows_g(group)), eos, _ends(group, eos))
        for group in groups
    ]
    states, pooled_g = (_joined(parts) for parts in zip(*encoded, strict=True))
    if encoder_l is not None:
        rows_l = [onto(encoder_l.device, tokenizer.rows_l(group)) for group in groups]
        state_l = _joined([penultimate_state(encoder_l, rows) for rows in rows_l])
        states = torch.cat((state_l, states), dim=-1)

    context_of = dict(zip(distinct, states.unbind(0), strict=False))  # without what fills the last call
    pooled_of = dict(zip(distinct, pooled_g.unbind(0), strict=False))
    context = torch.cat([context_of[chunk] for sample in padded for chunk in sample])
    pooled = pool_chunks([[pooled_of[chunk] for chunk in sample] for sample in own], pooling)
    return context.view(len(padded), -1, context.shape[-1]), pooled


def default_rows(device: torch.device) -> int:
    """How many chunks the towers encode in one call: one on the CPU, ROWS_ON_A_GPU elsewhere.

    A call costs a GPU hundreds of launches, whatever it encodes. On the CPU, products of several rows that threads
    share are rounded otherwise than those of one.
    """
    return 1 if device.type == "cpu" else ROWS_ON_A_GPU


def _ends(chunks: Sequence[Chunk], eos_id: int) -> list[int]:
    """The position of the first EOS in each chunk's row, which begins with BOS."""
    return [1 + (chunk.index(eos_id) if eos_id in chunk else len(chunk)) for chunk in chunks]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def pool_chunks(states: list[list[Tensor]], pooling: str) -> Tensor:
    """One state for each sample, from those of its own chunks (N §4.2); in as few operations as there are lengths.

    states  B × chunks × [P]        pooling  "mean" or "first"        returns  [B, P]
    """
    if pooling == "first":
        return torch.stack([sample[0] for sample in states])
    order, means = sorted(range(len(states)), key=lambda number: len(states[number])), []
    for length, members in groupby(order, key=lambda number: len(states[number])):
        rows = torch.stack([state for number in members for state in states[number]])
        means.append(rows if length == 1 else rows.unflatten(0, (-1, length)).mean(dim=1))
    if len(means) == 1:
        return means[0]  # of equal lengths, sorted as they came
    pooled = dict(zip(order, (row for rows in means for row in rows.unbind(0)), strict=True))
    return torch.stack([pooled[number] for number in range(len(states))])


def null_condition(
    kind: str,
    tokenizer: Tokenizer,
    encoder_l: CLIPTextModel | None,
    encoder_g: CLIPTextModelWithProjection,
) -> tuple[Tensor, Tensor]:
    """The unconditional (null) conditioning, in training and in sampling alike.

    kind  "zeros", or "empty": the empty prompt's states      returns  context [1, 77, D], pooled [1, P]
    Raises InputError on another kind.
    """
    if kind not in NULL_KINDS:
        raise InputError(f"null_condition: kind is {kind!r}; choose one of {', '.join(NULL_KINDS)}")
    context, pooled = encode_prompts([""], tokenizer, encoder_l, encoder_g)
    if kind == "zeros":
        return torch.zeros_like(context), torch.zeros_like(pooled)
    return context, pooled


def apply_dropout(
    context: Tensor, pooled: Tensor, drop: Tensor, null: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Replace the conditioning of the samples marked in `drop` with the null conditioning.

    context [B, 77·n, D]; pooled [B, P]; drop [B] bool, drawn by the caller on each visit to a sample;
    null from `null_condition`, repeated n times along the sequence      returns  new (context, pooled)
    Raises InputError when shapes do not fit or drop is not bool.
    """
    null_context, null_pooled = null
    if drop.dtype != torch.bool or drop.shape != context.shape[:1]:
        raise InputError(
            f"apply_dropout: drop must be bool [{context.shape[0]}], got {drop.dtype} {list(drop.shape)}"
        )
    repeats, rest = divmod(context.shape[1], null_context.shape[1])
    if rest or null_context.shape[2] != context.shape[2] or null_pooled.shape[1:] != pooled.shape[1:]:
        raise InputError(
            f"apply_dropout: null condition {list(null_context.shape)}, {list(null_pooled.shape)} "
            f"does not fit {list(context.shape)}, {list(pooled.shape)}; compute it with the same encoders"
        )
    drop = drop.to(context.device)
    null_context = null_context.to(context).expand(repeats, -1, -1)
    by_chunk = context.unflatten(1, (repeats, -1))
    return (
        torch.where(drop[:, None, None, None], null_context, by_chunk).flatten(1, 2),
        torch.where(drop[:, None], null_pooled.to(pooled), pooled),
    )


def size_embedding(size_ints: Tensor) -> Tensor:
    """Fourier features of the size and crop integers, each embedded separately (S §2.2).

    size_ints  [B, K]  pixels, integer or float32; K = 6: original h, w; crop top, left; target h, w
    returns  [B, 256·K] float32, cosines first within each integer's 256
    Raises InputError on another shape, or on bfloat16 and float16, which cannot hold 1217.
    """
    if size_ints.dim() != 2:
        raise InputError(f"size_embedding: expected [B, 6], got {list(size_ints.shape)}")
    return sinusoidal_features(size_ints, SIZE_FEATURES).flatten(1)


def size_features(size_ints: Tensor, scores: Tensor | None = None) -> Tensor:
    """The features of an image's sizes and crop that stand beside its pooled state (S §2.2).

    size_ints [B, 6]; scores [B] for the refiner, which replace the target size (S §2.5)
    returns  [B, 1536] float32; with scores [B, 1280]. Raises InputError as `vector_conditioning` does.
    """
    numbers = size_ints
    if scores is not None:
        if scores.shape != size_ints.shape[:1]:
            raise InputError(
                f"vector_conditioning: scores {list(scores.shape)} must be [B], one for each of {len(size_ints)}"
            )
        # original h, w; crop top, left; score. float32 holds every size below 2^24.
        numbers = torch.cat((size_ints[:, :4].float(), scores[:, None].float()), dim=1)
    return size_embedding(numbers)


def vector_conditioning(
    pooled: Tensor, size_ints: Tensor, scores: Tensor | None = None, features: Tensor | None = None
) -> Tensor:
    """The vector that is added to the timestep embedding: pooled ⊕ size features (S §2.2).

    pooled [B, P]; size_ints and scores as in `size_features`; features: what that gives for them, where it was
    computed beforehand
    returns  [B, P + 1536] in pooled's dtype, 2816 for SDXL; with scores [B, P + 1280], 2560 for its refiner
    The features are computed in float32 and cast at the end. Raises InputError when the batch sizes differ.
    """
    if features is None:
        features = size_features(size_ints, scores)
    if pooled.dim() != 2 or features.shape[:1] != pooled.shape[:1]:
        raise InputError(
            f"vector_conditioning: pooled {list(pooled.shape)} and size_ints {list(size_ints.shape)} "
            "must be [B, P] and [B, 6] with equal B"
        )
    wide = torch.promote_types(pooled.dtype, torch.float32)
    return torch.cat((pooled.to(wide), features.to(wide)), dim=-1).to(pooled.dtype)


def _checked(prompts: Sequence[str]) -> Sequence[str]:
    if isinstance(prompts, str):
        raise InputError(
            f"prompts: expected a list of str, got the single str {prompts[:60]!r}; wrap it in a list"
        )
    if not isinstance(prompts, Sequence):
        raise InputError(f"prompts: expected a list of str, got {type(prompts).__name__}")
    if len(prompts) == 0:
        raise InputError("prompts: the list is empty; give at least one prompt (it may be the empty str)")
    return prompts


def _check_vocabulary(
    tokenizer: Tokenizer, *encoders: CLIPTextModel | CLIPTextModelWithProjection | None
) -> None:
    for encoder in encoders:
        if encoder is None:
            continue
        config = encoder.config
        if config.vocab_size < tokenizer.vocabulary_size or config.max_position_embeddings < ROW_TOKENS:
            raise InputError(
                f"encode_prompts: {type(encoder).__name__} has {config.vocab_size} tokens and "
                f"{config.max_position_embeddings} positions, but the tokenizer has "
                f"{tokenizer.vocabulary_size} tokens in rows of {ROW_TOKENS}; "
                "use the tokenizer that belongs to the encoder"
            )
