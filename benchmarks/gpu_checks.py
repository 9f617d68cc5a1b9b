"""Checks of the CUDA kernels that are no unit tests: python -m benchmarks.gpu_checks NAME.

extension  the built extension can be imported, and holds CUDA kernels where there is a GPU
determinism  every kernel gives equal bits twenty times over, on another stream too
nccl       a world of one process under NCCL: DDP's gradients equal those without it
graph      a training step of the tiny UNet captured in a CUDA graph, replayed on new data against the eager step
large      more than 2^31 elements, against the same samples computed alone
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.shapes import DTYPES, Inputs, inputs
from refimpl.diffusion.philox import Purpose, draw_key
from refimpl.model.unet import UNet, UNetConfig
from refimpl.ops import KernelNotBuilt, Ops, load_ops
from tests.ops import checks

REPLAYED_STEP = 1e-5  # some roundings: the graph may choose other convolution algorithms than the eager step


@cache
def kernel() -> Ops:
    """The operations under test; loaded when a check begins, so that `extension` can say that they are absent."""
    return load_ops("kernel")


def extension(device: str, small: bool) -> None:
    """Fails where the extension is absent, or built without CUDA for a CUDA device."""
    try:
        kernel()
    except KernelNotBuilt as error:
        sys.exit(str(error))
    from refimpl.ops import _kernels

    if device == "cuda" and not _kernels.cuda_arches:
        sys.exit("the extension was built without CUDA")


def determinism(device: str, small: bool) -> None:
    """Every kernel in every dtype and memory order, twice as often as chance would need to show an order."""
    for dtype in DTYPES.values():
        for shape in ((2, 4, 16, 16), (3, 3, 7, 9), (1, 70, 3, 5), (4, 4, 128, 128)):
            for order in (torch.contiguous_format, torch.channels_last):
                x = inputs(shape[0], shape[1:], dtype, device)
                prediction, x0, eps = (
                    t.detach().contiguous(memory_format=order) for t in (x.prediction, x.x0, x.eps)
                )
                arguments = (kernel(), prediction, x0, eps, x.key, x.alpha, x.sigma, x.weight)
                first = checks.results_of(*arguments)
                for _ in range(2 if small else 10):
                    assert_equal(first, checks.results_of(*arguments))
                if device == "cuda":
                    stream = torch.cuda.Stream()
                    stream.wait_stream(torch.cuda.current_stream())
                    with torch.cuda.stream(stream):
                        again = checks.results_of(*arguments)
                    stream.synchronize()
                    assert_equal(first, again)


def assert_equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Equal bits in every result."""
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def nccl(device: str, small: bool) -> None:
    """DDP over NCCL (gloo on a CPU) in a world of one process."""
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", init_method=f"file://{file.name}", rank=0, world_size=1
        )
        config = UNetConfig.tiny()
        network = UNet(config).to(device)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(2, 4, 16, 16, generator=generator).to(device)
        context = torch.randn(2, 77, config.context_dim, generator=generator).to(device)
        vector = torch.randn(2, config.vector_dim, generator=generator).to(device)
        t = torch.tensor([3, 999], device=device)
        gradients = []
        for module in (network, DistributedDataParallel(network)):
            network.zero_grad()
            module(x, t, context, vector).square().mean().backward()
            gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        for a, b in zip(*gradients, strict=True):
            assert torch.allclose(a, b, rtol=REPLAYED_STEP, atol=REPLAYED_STEP)
        dist.destroy_process_group()


def graph(device: str, small: bool) -> None:
    """Loss and gradients of a captured step equal those of the eager one, on data it was not captured with."""
    config = UNetConfig.tiny()
    network = UNet(config).to(device)
    shape = (4, 8, 8) if small else (4, 32, 32)
    generator = torch.Generator().manual_seed(2)
    context = torch.randn(4, 77, config.context_dim, generator=generator).to(device)
    vector = torch.randn(4, config.vector_dim, generator=generator).to(device)

    def step(x: Inputs) -> list[Tensor]:
        x_t = kernel().add_keyed_noise(x.x0, x.key, x.alpha, x.sigma, 0.05)
        v = network(x_t, x.t, context, vector)
        loss = kernel().keyed_v_loss(v, x.x0, x.key, x.alpha, x.sigma, x.weight, 0.05).mean()
        return [loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))]

    static, new = inputs(4, shape, torch.float32, device), inputs(4, shape, torch.float32, device)
    new = Inputs(*(t.detach().flip(0) for t in new))
    if device == "cpu":
        step(static)
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(static)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = step(static)
    for old, value in zip(static, new, strict=True):
        old.detach().copy_(value)
    captured.replay()
    for replayed, eager in zip(results, step(new), strict=True):
        assert torch.allclose(replayed, eager, rtol=REPLAYED_STEP, atol=REPLAYED_STEP)


def large(device: str, small: bool) -> None:
    """A batch and a sample of more than 2^31 elements: the last ones come out as they do alone."""
    batch, side = (5, 64) if small else (2**15 + 1, 128)
    x0 = torch.empty(batch, 4, side, side, dtype=torch.bfloat16, device=device).normal_()
    prediction, eps = torch.empty_like(x0).normal_(), torch.empty_like(x0).normal_()
    key = draw_key(0, torch.arange(batch), 0, Purpose.NOISE).to(device)
    alpha, sigma, weight = torch.rand(3, batch, device=device).unbind()
    last = slice(batch - 2, batch)
    arguments = (prediction, x0, eps, key, alpha, sigma, weight)
    whole = (
        kernel().add_noise(x0, eps, alpha, sigma)[last],
        kernel().add_keyed_noise(x0, key, alpha, sigma, 0.05)[last],
        kernel().v_loss(prediction, x0, eps, alpha, sigma, weight)[last],
        kernel().keyed_v_loss(prediction, x0, key, alpha, sigma, weight, 0.05)[last],
    )
    p, x, e, k, a, s, w = (t[last] for t in arguments)
    alone = (
        kernel().add_noise(x, e, a, s),
        kernel().add_keyed_noise(x, k, a, s, 0.05),
        kernel().v_loss(p, x, e, a, s, w),
        kernel().keyed_v_loss(p, x, k, a, s, w, 0.05),
    )
    for ours, expected in zip(whole, alone, strict=True):
        assert torch.equal(ours, expected)
    count, mean, _ = kernel().channel_moments(x0)
    assert count.item() == batch * side * side
    assert bool((mean.abs() < 6 * float(count) ** -0.5).all())  # six standard deviations of a mean of normals
    del prediction, eps, x0

    shape = (1, 64, 33) if small else (1, 2**16, 2**15 + 1)
    one = kernel().keyed_normal(key[:1], shape)
    on_cpu = kernel().keyed_normal(key[:1].cpu(), shape)
    tail = 2**20
    assert torch.equal(one.flatten()[-tail:].cpu(), on_cpu.flatten()[-tail:])
    print(f"{batch * 4 * side * side} elements in a batch and {one.numel()} in a sample agree")


CHECKS = {
    "extension": extension,
    "determinism": determinism,
    "nccl": nccl,
    "graph": graph,
    "large": large,
}


def main() -> None:
    """Runs the check that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=tuple(CHECKS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="small tensors and few steps, to try the script")
    arguments = parser.parse_args()
    CHECKS[arguments.check](arguments.device, arguments.small)
    print(f"{arguments.check} passed on {arguments.device}")


if __name__ == "__main__":
    main()
