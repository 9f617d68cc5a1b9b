"""Memory traffic and kept activations of the UNet's forward and backward pass, counted without computing anything.

python -m benchmarks.count_unet [--batch N] [--side PIXELS] [--out FILE]        writes results/unet_counts.json

Everything runs on the meta device, in float32 but for the rows in bf16, which are cast as autocast casts them, the
weights once. The traffic of an operation is the bytes of the tensors it takes and
returns; matrix products, convolutions and attention are summed apart, as their traffic is not what bounds them. What
is kept is what is alive when the forward pass ends: the saved tensors, whoever holds them, without parameters and
inputs.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import write
from refimpl.model.config import Recompute, UNetConfig
from refimpl.model.unet import UNet
from refimpl.ops import Ops, load_ops
from refimpl.train.budget.as_on_cuda import AsOnCuda
from refimpl.train.budget.live_memory import backward

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
ATTENTION = "_scaled_dot_product"
GEGLU_ALONE = "geglu alone"  # the reference's operations with the compiled GEGLU
CASES: tuple[tuple[str, Recompute, str], ...] = (
    ("reference", "none", "tf32"),
    (GEGLU_ALONE, "none", "tf32"),
    ("kernel", "none", "tf32"),
    ("kernel", "cheap", "tf32"),
    ("kernel", "full", "tf32"),
    ("kernel", "none", "bf16"),
    ("kernel", "cheap", "bf16"),
    ("kernel", "full", "bf16"),
)
CASTS = "_to_copy", "copy_"  # into memory of their own, or into a part of some
LATENT_CELL = 8  # pixels on a side
TEXT_TOKENS = 77


@dataclass
class Counts(TorchDispatchMode):
    """Calls and bytes of each operation, and the storages that they made, while this mode is on."""

    calls: Counter[str] = field(default_factory=Counter)
    traffic: Counter[str] = field(default_factory=Counter)
    made: dict[int, tuple[StorageWeakRef, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = list(tensors_of(out))
        given = list(tensors_of(args))
        for result in results:
            storage = result.untyped_storage()
            if storage._cdata not in self.made:
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        if not _moves_nothing(func, given, results):
            name = func.overloadpacket.__name__
            self.calls[name] += 1
            self.traffic[name] += sum(t.numel() * t.element_size() for t in given + results)
        return out


def tensors_of(value: Any) -> Iterable[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors_of(entry)


def _moves_nothing(func: Any, given: list[Tensor], results: list[Tensor]) -> bool:
    """Whether an operation only looks at its argument another way, or allocates."""
    if "empty" in func.overloadpacket.__name__:
        return True
    storages = {t.untyped_storage()._cdata for t in given}
    writes = any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)
    return not writes and all(t.untyped_storage()._cdata in storages for t in results)


def operations(backend: str) -> Ops:
    """The operations of a case."""
    if backend == GEGLU_ALONE:
        return load_ops("reference")._replace(geglu=load_ops("kernel").geglu)
    return load_ops(backend)


def count(
    config: UNetConfig, batch: int, side: int, backend: str, how: Recompute, precision: str = "tf32"
) -> dict:
    """The counts of one forward and backward pass at side × side pixels.

    returns  kept_bytes (alive after the forward pass), product_bytes and other_bytes (traffic of both passes), calls,
             casts (from one dtype to another) and their traffic, and that of the ten operations that move the most
    """
    with torch.device("meta"):
        unet = UNet(config, how)
        cells = side // LATENT_CELL
        x = torch.empty(batch, config.in_channels, cells, cells)
        context = torch.empty(batch, TEXT_TOKENS, config.context_dim)
        t, vector = torch.empty(batch, dtype=torch.int64), torch.empty(batch, config.vector_dim)
    unet.set_ops(operations(backend))
    own = {t.untyped_storage()._cdata for t in (x, context, t, vector, *unet.parameters())}
    with AsOnCuda() as on_cuda, Counts() as counts:
        if precision == "bf16":
            on_cuda.start_autocast(context)
        out = unet(x, t, context, vector)
        kept = sum(size for key, (made, size) in counts.made.items() if key not in own and not made.expired())
        backward(out.float().square().mean())
    products = sum(size for name, size in counts.traffic.items() if _is_product(name))
    return {
        "kept_bytes": kept,
        "product_bytes": products,
        "other_bytes": counts.traffic.total() - products,
        "calls": counts.calls.total(),
        "cast_calls": sum(counts.calls[name] for name in CASTS),
        "cast_bytes": sum(counts.traffic[name] for name in CASTS),
        "product_calls": sum(n for name, n in counts.calls.items() if _is_product(name)),
        "most_traffic": dict(counts.traffic.most_common(10)),
    }


def _is_product(name: str) -> bool:
    return name in PRODUCTS or name.startswith(ATTENTION)


def line_of(row: dict) -> str:
    """One case for the terminal."""
    return (
        f"{row['backend']:<11} {row['activation_checkpointing']:<5} {row['precision']} "
        f"kept {row['kept_bytes'] / 2**30:6.1f} GiB, traffic without products {row['other_bytes'] / 1e9:6.1f} GB, "
        f"of products {row['product_bytes'] / 1e9:6.1f} GB in {row['product_calls']} calls, "
        f"of casts {row['cast_bytes'] / 1e9:5.1f} GB in {row['cast_calls']}; {row['calls']} calls"
    )


def main() -> None:
    """Count each case, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for backend, how, precision in CASES:
        row = {"backend": backend, "activation_checkpointing": how, "precision": precision}
        row |= count(UNetConfig.sdxl(), arguments.batch, arguments.side, backend, how, precision)
        rows.append(row)
        print(line_of(row), flush=True)
    result = {"batch": arguments.batch, "side": arguments.side, "rows": rows}
    print(f"wrote {write('unet_counts', result, arguments.out)}")


if __name__ == "__main__":
    main()
