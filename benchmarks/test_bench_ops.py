"""The rows of op_rows.py under pytest-benchmark, which compares runs and commits with each other.

pytest benchmarks/test_bench_ops.py --benchmark-enable [-k "v_loss and float32"] [--benchmark-json FILE]
"""

import functools

import pytest
import torch

from benchmarks.op_rows import COLUMNS, Columns, assert_agreement, rows
from benchmarks.shapes import BATCHES, DTYPES, LATENT_1024, inputs

LARGEST_CHECKED = 4


@functools.lru_cache(maxsize=1)
def rows_of(batch: int, dtype: str) -> dict[str, Columns]:
    """The rows of a batch and dtype, agreement asserted first; only the last ones are kept in memory."""
    x = inputs(batch, LATENT_1024, DTYPES[dtype])
    if batch <= LARGEST_CHECKED:
        assert_agreement(x)
    torch.compiler.reset()
    return rows(x)


@pytest.mark.parametrize(("operation", "column"), [(op, c) for op, cs in COLUMNS.items() for c in cs])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_operation(benchmark, dtype, batch, operation, column):
    benchmark.group = f"{operation} {dtype} B = {batch}"
    function = rows_of(batch, dtype)[operation][column]
    function()  # torch.compile compiles here
    benchmark(function)
