"""LoHa and LoKr: every layout that LyCORIS writes, against the same update written out densely."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.lora import files as lora_files
from refimpl.interop.lora.lycoris import fault_of, fits, is_lycoris, merged_lycoris, rank_of, update_of
from refimpl.interop.lora.merge import merge_into_checkpoint
from tests.interop.lora.test_merge import checkpoint
from tests.interop.lora_examples import ARCHITECTURE
from tests.tolerances import FLOAT32_ROUNDING, FLOAT64_ROUNDING

LINEAR = "input_blocks.3.1.transformer_blocks.0.attn1.to_q"
KERNEL = "input_blocks.1.0.in_layers.2"
SIZES = st.integers(1, 4)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loha(
    out: int, into: int, kernel: tuple[int, ...], rank: int, seed: int, tucker: bool = False
) -> dict[str, Tensor]:
    slots: dict[str, Tensor] = {}
    for n in (1, 2):
        if tucker:
            slots[f"hada_t{n}"] = numbers(seed + n, rank, rank, *kernel)
        a, b = ((rank, out), (rank, into)) if tucker else ((out, rank), (rank, into * math.prod(kernel)))
        slots[f"hada_w{n}_a"], slots[f"hada_w{n}_b"] = numbers(seed + 2 + n, *a), numbers(seed + 4 + n, *b)
    return slots


def lokr(
    rows: tuple[int, int],
    columns: tuple[int, int],
    kernel: tuple[int, ...],
    rank: int,
    seed: int,
    how: tuple[str, str],
) -> dict[str, Tensor]:
    """rows, columns  of the two factors; how  each is kept: whole, matrices, flat (its kernel not apart) or tucker"""
    (a, b), (c, d) = rows, columns
    first: dict[str, dict[str, tuple[int, ...]]] = {
        "whole": {"lokr_w1": (a, c)},
        "matrices": {"lokr_w1_a": (a, rank), "lokr_w1_b": (rank, c)},
    }
    second: dict[str, dict[str, tuple[int, ...]]] = {
        "whole": {"lokr_w2": (b, d, *kernel)},
        "matrices": {"lokr_w2_a": (b, rank), "lokr_w2_b": (rank, d, *kernel)},
        "flat": {"lokr_w2_a": (b, rank), "lokr_w2_b": (rank, d * math.prod(kernel))},
        "tucker": {"lokr_w2_a": (rank, b), "lokr_w2_b": (rank, d), "lokr_t2": (rank, rank, *kernel)},
    }
    shapes = {**first[how[0]], **second[how[1]]}
    return {name: numbers(seed + place, *shape) for place, (name, shape) in enumerate(shapes.items())}


def tucker_by_loops(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Σᵢⱼ core[i, j] · a[i, p] · b[j, r], at each element of the kernel."""
    rank = len(core)
    terms = [
        core[i, j] * torch.outer(a[i], b[j])[(..., *([None] * (core.ndim - 2)))]
        for i in range(rank)
        for j in range(rank)
    ]
    return torch.stack(terms).sum(0)


def dense(slots: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The update without its scale, by torch.kron and loops."""
    kernel = shape[2:]
    if "hada_t1" in slots:
        return torch.stack(
            [
                tucker_by_loops(slots[f"hada_t{n}"], slots[f"hada_w{n}_a"], slots[f"hada_w{n}_b"])
                for n in (1, 2)
            ]
        ).prod(0)
    if "hada_w1_a" in slots:
        halves = [slots[f"hada_w{n}_a"] @ slots[f"hada_w{n}_b"] for n in (1, 2)]
        return (halves[0] * halves[1]).reshape(shape)
    w1 = slots["lokr_w1"] if "lokr_w1" in slots else slots["lokr_w1_a"] @ slots["lokr_w1_b"]
    if "lokr_t2" in slots:
        w2 = tucker_by_loops(slots["lokr_t2"], slots["lokr_w2_a"], slots["lokr_w2_b"])
    elif "lokr_w2" in slots:
        w2 = slots["lokr_w2"]
    else:
        w2 = slots["lokr_w2_a"] @ slots["lokr_w2_b"].flatten(1)
    w2 = w2.reshape(shape[0] // len(w1), shape[1] // w1.shape[1], *kernel)
    return torch.kron(w1.reshape(*w1.shape, *([1] * len(kernel))), w2)


kernels = st.sampled_from(((), (1, 1), (3, 3), (2, 3)))
adapters = st.one_of(
    st.tuples(st.just("loha"), SIZES, SIZES, kernels, SIZES, st.booleans()).map(
        lambda c: (loha(c[1], c[2], c[3], c[4], 0, c[5] and bool(c[3])), (c[1], c[2], *c[3]))
    ),
    st.tuples(
        SIZES, SIZES, SIZES, SIZES, kernels, SIZES,
        st.sampled_from(("whole", "matrices")), st.sampled_from(("whole", "matrices", "flat", "tucker")),
    ).map(
        lambda c: (
            lokr((c[0], c[1]), (c[2], c[3]), c[4], c[5], 0, (c[6], c[7] if c[4] or c[7] != "tucker" else "flat")),
            (c[0] * c[1], c[2] * c[3], *c[4]),
        )
    ),
)  # fmt: skip


@given(adapters)
def test_the_update_is_the_dense_one(adapter: tuple[dict[str, Tensor], tuple[int, ...]]) -> None:
    slots, shape = adapter
    assert is_lycoris(slots)
    assert fits(slots, shape)
    assert fault_of(slots, [shape]) == ""
    wanted = dense(slots, shape)
    found = update_of(slots, shape, torch.float64)
    torch.testing.assert_close(found, wanted, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING)


@given(adapters, st.sampled_from((0.0, 1.0, -1.0, 0.5)), st.sampled_from((None, 1.0, 7.0)))
def test_merging_adds_alpha_over_rank_times_the_update(
    adapter: tuple[dict[str, Tensor], tuple[int, ...]], strength: float, alpha: float | None
) -> None:
    slots, shape = adapter
    weight = numbers(99, *shape)
    rank = rank_of(slots)
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    if alpha is not None:
        slots = {**slots, "alpha": torch.tensor(alpha)}
    wanted = weight + strength * scale * dense(slots, shape)
    found = merged_lycoris(weight, slots, strength)
    torch.testing.assert_close(found, wanted, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING)


@given(adapters, st.booleans(), st.sampled_from((0.0, 1.0, 0.5)))
def test_a_magnitude_is_the_norm_of_each_row_or_column(
    adapter: tuple[dict[str, Tensor], tuple[int, ...]], by_row: bool, strength: float
) -> None:
    slots, shape = adapter
    assume(min(shape[:2]) > 1)
    size = shape[0] if by_row else shape[1]
    ones = [1] * (len(shape) - 2)
    magnitude = torch.arange(1.0, size + 1, dtype=torch.float64)
    slots = {**slots, "dora_scale": magnitude.view([size, 1, *ones] if by_row else [1, size, *ones])}
    weight = numbers(99, *shape)
    merged = merged_lycoris(weight, slots, 1.0)
    by = merged.flatten(1) if by_row else merged.transpose(0, 1).flatten(1)
    torch.testing.assert_close(by.norm(dim=1), magnitude, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING)
    between = merged_lycoris(weight, slots, strength)
    wanted = weight + strength * (merged - weight)
    torch.testing.assert_close(between, wanted, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING)


@given(adapters, st.data())
def test_a_tensor_missing_misshapen_or_too_many_is_a_fault(
    adapter: tuple[dict[str, Tensor], tuple[int, ...]], data: st.DataObject
) -> None:
    slots, shape = adapter
    name = data.draw(st.sampled_from(sorted(slots)))
    longer = {**slots, name: torch.cat([slots[name], slots[name][:1]])}
    assert not fits(longer, shape) or fault_of(longer, [shape]) == ""
    assert "do not fit its weight" in fault_of(longer, [shape])
    fewer = {slot: tensor for slot, tensor in slots.items() if slot != name}
    if not name.endswith(("t1", "t2")) and len(fewer) > 1:
        assert "the file has no" in fault_of(fewer, [shape])
    other = "lokr_w1" if "hada_w1_a" in slots else "hada_t1"
    assert fault_of({**slots, other: torch.ones(1, 1)}, [shape]) != ""


def file_of(path: Path, modules: Mapping[str, Mapping[str, Tensor]]) -> Path:
    tensors = {
        f"lora_unet_{module.replace('.', '_')}.{slot}": tensor.float().contiguous()
        for module, slots in modules.items()
        for slot, tensor in slots.items()
    }
    save_file(tensors, str(path))
    return path


def test_a_file_is_read_and_merged_into_a_checkpoint(tmp_path: Path) -> None:
    before = checkpoint()
    assert before.unet is not None
    linear, kernel = before.unet[f"{LINEAR}.weight"], before.unet[f"{KERNEL}.weight"]
    out, into = linear.shape
    modules = {
        LINEAR: {
            **lokr((4, out // 4), (8, into // 8), (), 2, 0, ("whole", "matrices")),
            "alpha": torch.tensor(4.0),
        },
        KERNEL: {**loha(*kernel.shape[:2], (3, 3), 2, 1, tucker=True), "alpha": torch.tensor(1.0)},
    }
    adapter = lora_files.load(file_of(tmp_path / "a.safetensors", modules), ARCHITECTURE)
    assert {key.rpartition(".")[0] for key in adapter.unet} == {LINEAR, KERNEL}
    merged = merge_into_checkpoint(before, adapter, 0.5)
    assert merged.unet is not None
    for module, scale in ((LINEAR, 4.0 / 2), (KERNEL, 1.0 / 2)):
        weight = before.unet[f"{module}.weight"]
        wanted = weight.double() + 0.5 * scale * dense(
            {slot: value.float().double() for slot, value in modules[module].items()}, tuple(weight.shape)
        )
        found = merged.unet[f"{module}.weight"].double()
        torch.testing.assert_close(found, wanted, rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING)
    changed = {key for key, value in merged.unet.items() if not torch.equal(value, before.unet[key])}
    assert changed == {f"{LINEAR}.weight", f"{KERNEL}.weight"}


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    wrong = {LINEAR: loha(5, 7, (), 2, 0)}
    with pytest.raises(
        InputError, match=r"misshapen lora_unet_input\S+to_q: hada_w1_a \[5, 2\].* do not fit its weight"
    ):
        lora_files.load(file_of(tmp_path / "a.safetensors", wrong), ARCHITECTURE)
    half = {LINEAR: {"lokr_w1": torch.ones(2, 2)}}
    with pytest.raises(InputError, match=r"the file has no lokr_w2_a and no lokr_w2_b for it"):
        lora_files.load(file_of(tmp_path / "b.safetensors", half), ARCHITECTURE)
    other = lora_files.LoRAFile(unet={f"{LINEAR}.{slot}": value for slot, value in wrong[LINEAR].items()})
    with pytest.raises(
        InputError, match=r"to_q does not fit the checkpoint: hada_w1_a .*that it was trained on"
    ):
        merge_into_checkpoint(checkpoint(), other)
    with pytest.raises(InputError, match=r"is a LoHa's or LoKr's, and only plain LoRA is written"):
        lora_files.save(other, tmp_path / "c.safetensors")
