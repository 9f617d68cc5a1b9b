"""LoHa and LoKr, two adapters beside LoRA, in the layout of LyCORIS (github.com/KohakuBlueleaf/LyCORIS).

With o outputs, i inputs, a kernel of k elements and the rank r, the update ΔW [o, i, k] is alpha / r times

    LoHa   (w1_a · w1_b) ⊙ (w2_a · w2_b)                  Hyeon-Woo et al. 2022, "FedPara", §2.2
           hada_w1_a, hada_w2_a [o, r]; hada_w1_b, hada_w2_b [r, i·k]
    LoKr   w1 ⊗ w2                                        Yeh et al. 2024, LyCORIS, §3.2 (Kronecker product)
           lokr_w1 [a, c], or lokr_w1_a [a, r] · lokr_w1_b [r, c]
           lokr_w2 [b, d, k], or lokr_w2_a [b, r] · lokr_w2_b [r, d·k], where a·b = o and c·d = i

A factor of a kernel may be a Tucker decomposition: a core t [r, r, k] and matrices [r, rows] and [r, columns], both
rank first (hada_t1 with w1_a and w1_b, hada_t2, lokr_t2). A LoKr of two whole factors has no rank, and no scale.

With dora_scale [o, 1, …] or [1, i, …] the result is the magnitude of each row, or column, times its direction:
(W + ΔW) · dora_scale / ‖W + ΔW‖ (Liu et al. 2024, "DoRA", eq. 5).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from refimpl.model.lora.adapters import ALPHA

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOHA_CORES = ("hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
MAGNITUDE = "dora_scale"
SLOTS = (*LOHA, *LOHA_CORES, *LOKR, MAGNITUDE)

Slots = Mapping[str, Tensor]


def is_lycoris(slots: Slots) -> bool:
    """Whether a module's tensors are a LoHa or a LoKr."""
    return any(slot in slots for slot in (*LOHA, *LOKR))


def rank_of(slots: Slots) -> int | None:
    """The rank r; None for a LoKr of two whole factors."""
    for slot in ("hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if slot in slots:
            return len(slots[slot])
    return None


def update_of(slots: Slots, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """ΔW in the shape of the weight, without its scale of alpha / rank; `fault_of` finds none."""
    out, into, *kernel = shape
    wide = {slot: tensor.to(dtype) for slot, tensor in slots.items()}
    if "hada_w1_a" in wide:
        first, second = (
            _factor(wide, f"hada_w{n}", f"hada_t{n}", (out, into, math.prod(kernel))) for n in (1, 2)
        )
        return (first * second).reshape(*shape)
    w1 = wide["lokr_w1"] if "lokr_w1" in wide else wide["lokr_w1_a"] @ wide["lokr_w1_b"]
    rows, columns = w1.shape
    w2 = _factor(wide, "lokr_w2", "lokr_t2", (out // rows, into // columns, math.prod(kernel)))
    return torch.einsum("ac,bdk->abcdk", w1, w2).reshape(*shape)


def merged_lycoris(weight: Tensor, slots: Slots, strength: float = 1.0) -> Tensor:
    """The weight with its update, computed in float32 or wider, in its dtype.

    strength  0 leaves the weight, 1 applies the update; between, and beyond, is on the line through both
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    before, rank = weight.to(wide), rank_of(slots)
    scale = 1.0 if rank is None or ALPHA not in slots else float(slots[ALPHA]) / rank
    after = before + scale * update_of(slots, weight.shape, wide)
    if MAGNITUDE in slots:
        magnitude = slots[MAGNITUDE].to(wide)
        others = [axis for axis in range(weight.ndim) if axis != _axis(magnitude)]
        after = after * (magnitude / torch.linalg.vector_norm(after, dim=others, keepdim=True))
    return (after if strength == 1 else before + strength * (after - before)).to(weight.dtype)


def fault_of(slots: Slots, shapes: Sequence[tuple[int, ...]]) -> str:
    """What is wrong with a module's tensors; empty if they are an update for a weight of one of the shapes."""
    needed = _needed(slots)
    missing = [slot for slot in needed if slot not in slots]
    if missing:
        return f"the file has no {' and no '.join(missing)} for it"
    extra = [slot for slot in slots if slot not in (*needed, ALPHA, MAGNITUDE)]
    if extra:
        return f"the file has {' and '.join(extra)} for it, which {' and '.join(needed)} leave no place for"
    if not any(fits(slots, shape) for shape in shapes):
        have = ", ".join(
            f"{slot} {list(slots[slot].shape)}" for slot in (*needed, MAGNITUDE) if slot in slots
        )
        return f"{have} do not fit its weight {' or '.join(str(list(shape)) for shape in shapes)}"
    return ""


def fits(slots: Slots, shape: Sequence[int]) -> bool:
    """Whether the tensors, all of them there, are an update for a weight of this shape."""
    out, into, *kernel = shape
    elements, rank = math.prod(kernel), rank_of(slots)
    magnitude = slots.get(MAGNITUDE)
    if magnitude is not None and tuple(magnitude.shape) not in _magnitudes(shape):
        return False
    if "hada_w1_a" in slots:
        return all(_fits(slots, f"hada_w{n}", f"hada_t{n}", (out, into, elements), rank) for n in (1, 2))
    w1 = slots.get("lokr_w1")
    if w1 is None:
        a, b = slots["lokr_w1_a"], slots["lokr_w1_b"]
        if a.ndim != 2 or b.ndim != 2 or not a.shape[1] == len(b) == rank:
            return False
        rows, columns = len(a), b.shape[1]
    elif w1.ndim == 2:
        rows, columns = w1.shape
    else:
        return False
    if min(rows, columns) < 1 or out % rows or into % columns:
        return False
    return _fits(slots, "lokr_w2", "lokr_t2", (out // rows, into // columns, elements), rank)


def _needed(slots: Slots) -> list[str]:
    """The tensors that a module must have, by the ones that it has."""
    if any(slot in slots for slot in LOHA):
        cores = LOHA_CORES if any(slot in slots for slot in LOHA_CORES) else ()
        return [*LOHA, *cores]
    first = ["lokr_w1"] if "lokr_w1" in slots else ["lokr_w1_a", "lokr_w1_b"]
    second = ["lokr_w2"] if "lokr_w2" in slots else ["lokr_w2_a", "lokr_w2_b"]
    return [*first, *second, *(["lokr_t2"] if "lokr_t2" in slots and "lokr_w2" not in slots else [])]


def _factor(slots: Slots, name: str, core: str, shape: tuple[int, int, int]) -> Tensor:
    """A factor [rows, columns, elements of the kernel]: whole, of two matrices, or of a core and two matrices."""
    if name in slots:
        return slots[name].reshape(shape)
    a, b = slots[f"{name}_a"], slots[f"{name}_b"]
    if core in slots:
        return torch.einsum("ijk,ip,jr->prk", slots[core].flatten(2), a, b)
    return (a @ b.flatten(1)).reshape(shape)


def _fits(slots: Slots, name: str, core: str, shape: tuple[int, int, int], rank: int | None) -> bool:
    """Whether `_factor` gives the shape."""
    rows, columns, elements = shape
    if name in slots:
        whole = slots[name]
        return whole.ndim >= 2 and len(whole) == rows and whole[0].numel() == columns * elements
    a, b = slots[f"{name}_a"], slots[f"{name}_b"]
    if not rank or a.ndim != 2 or b.ndim < 2 or len(b) != rank:
        return False
    if core not in slots:
        return tuple(a.shape) == (rows, rank) and b[0].numel() == columns * elements
    middle = slots[core]
    fit = tuple(a.shape) == (rank, rows) and tuple(b.shape) == (rank, columns)
    return fit and middle.ndim > 2 and middle.shape[:2] == (rank, rank) and middle[0, 0].numel() == elements


def _magnitudes(shape: Sequence[int]) -> set[tuple[int, ...]]:
    """The shapes of a magnitude for every row, or every column."""
    out, into, *kernel = shape
    ones = [1] * len(kernel)
    return {(out, 1, *ones), (1, into, *ones)}


def _axis(magnitude: Tensor) -> int:
    """The axis along which the magnitude differs."""
    return 1 if magnitude.shape[0] == 1 else 0
