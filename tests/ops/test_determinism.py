"""Equal bits: on every run, for every batch split, number of threads and instruction set."""

import pytest
import torch

from refimpl.ops import _kernels, load_ops
from tests.ops import checks
from tests.ops.test_kernel import example

KERNEL = load_ops("kernel")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ORDERS = pytest.mark.parametrize(
    "order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


@ORDERS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_runs_and_batch_splits(dtype, order, device):
    arguments = example((5, 4, 33, 40), dtype, device, order)
    checks.check_repeatable(KERNEL, *arguments)
    checks.check_batch_split(KERNEL, *arguments)


@ORDERS
def test_number_of_threads(order):
    arguments = example((9, 4, 80, 81), torch.float32, "cpu", order)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(checks.results_of(KERNEL, *arguments))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@ORDERS
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_instruction_set(dtype, order):
    arguments = example((2, 4, 21, 23), dtype, "cpu", order)
    best = checks.results_of(KERNEL, *arguments)
    tried = []
    try:
        for isa in ("plain", "avx2", "avx512"):
            try:
                _kernels.use_isa(isa)
            except ValueError:
                continue  # this processor does not have it
            tried.append(isa)
            assert _kernels.isa() == isa
            results = checks.results_of(KERNEL, *arguments)
            assert all(torch.equal(a, b) for a, b in zip(best, results, strict=True)), isa
    finally:
        _kernels.use_isa("best")
    assert tried[0] == "plain"
    assert _kernels.isa() == tried[-1]


def test_an_unknown_instruction_set_is_refused():
    before = _kernels.isa()
    with pytest.raises(ValueError, match="no instruction set 'sse9'"):
        _kernels.use_isa("sse9")
    assert _kernels.isa() == before


@ORDERS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hundred_repeats_on_cuda(dtype, order, cuda):
    arguments = example((16, 4, 104, 152), dtype, cuda, order)
    checks.check_repeatable(KERNEL, *arguments, repeats=100)
