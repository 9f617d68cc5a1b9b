"""The cache of memory for the CPU kernels' large results (csrc/blocks.h): reused, never shared by two tensors."""

import gc
import threading
from pathlib import Path

import pytest
import torch

from refimpl.ops import load_ops

KERNEL = load_ops("kernel")
MEGABYTE = 2**20
KEPT_BLOCKS = 4
LARGE = (4, 256, 1024)  # 4 MB of one sample


def noise(shape=LARGE, seed: int = 0) -> torch.Tensor:
    return KERNEL.keyed_normal(torch.tensor([[seed, 0]]), shape)


def resident_bytes() -> int:
    """Resident memory of this process, from Linux, after collecting other tests' garbage."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_a_freed_block_serves_the_next_call():
    first = noise()
    address, values = first.data_ptr(), first.clone()
    assert address % 64 == 0, "aligned for the widest loads"
    del first
    again = noise()
    assert again.data_ptr() == address
    assert torch.equal(again, values)
    del again
    smaller = noise((4, 256, 1000))
    assert smaller.data_ptr() == address, "a bucket of nearly the same area takes it too"
    assert torch.equal(smaller.flatten(), values.flatten()[: smaller.numel()])


def test_living_tensors_share_nothing():
    alive = [noise(seed=seed) for seed in range(8)]
    views = [tensor[0, 0] for tensor in alive]
    expected = [view.clone() for view in views]
    assert len({tensor.data_ptr() for tensor in alive}) == len(alive)
    del alive  # the views keep their blocks
    later = [noise(seed=100 + seed) for seed in range(8)]
    assert not {view.data_ptr() for view in views} & {tensor.data_ptr() for tensor in later}
    assert all(torch.equal(view, values) for view, values in zip(views, expected, strict=True))


def test_the_gradient_stays_the_caller_s():
    """Successive losses with all gradients kept alive: none is overwritten by a later step."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 2, 4, 128, 128, generator=generator)
    scalars = (torch.full((2,), 0.6), torch.full((2,), 0.8), torch.ones(2))
    gradients, copies = [], []
    for step in range(6):
        prediction = torch.full_like(x0, float(step)).requires_grad_()
        KERNEL.v_loss(prediction, x0, eps, *scalars).mean().backward()
        gradients.append(prediction.grad)
        copies.append(prediction.grad.clone())
    assert all(torch.equal(a, b) for a, b in zip(gradients, copies, strict=True))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's accounts")
def test_few_blocks_are_kept():
    alive = [noise((4, 1024, 2600), seed) for seed in range(8)]  # of a size that glibc returns to the system
    size, before = alive[0].nbytes, resident_bytes()
    del alive
    assert before - resident_bytes() > (8 - KEPT_BLOCKS - 1) * size


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's accounts")
def test_kept_blocks_have_a_limit_in_bytes():
    """Blocks beyond half a gigabyte are returned to the system, however few they are."""
    alive = [
        torch.ops.refimpl.keyed_normal(torch.zeros(1, 2, dtype=torch.int64), 1, 8192, 10000) for _ in range(2)
    ]
    before = resident_bytes()
    del alive
    assert before - resident_bytes() > 300 * MEGABYTE


def test_results_behave_as_other_tensors(tmp_path):
    tensor = noise()
    expected = tensor.clone()
    torch.save(tensor, tmp_path / "tensor.pt")
    assert torch.equal(torch.load(tmp_path / "tensor.pt"), expected)
    array = tensor.numpy()
    del tensor
    assert torch.equal(torch.from_numpy(array), expected)
    assert torch.equal(noise().share_memory_(), expected)
    grown = noise().resize_(2, *LARGE)
    assert torch.equal(grown[0], expected[0])


def test_threads_do_not_mix_blocks_up():
    wrong = []

    def work(seed: int) -> None:
        expected = noise(seed=seed).clone()
        for _ in range(10):
            held = [noise(seed=seed) for _ in range(2)]
            wrong.extend(seed for tensor in held if not torch.equal(tensor, expected))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
