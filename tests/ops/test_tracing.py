"""The compiled operations under opcheck, torch.compile, torch.export and fake tensors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from refimpl.ops import load_ops
from tests.ops.test_kernel import example

KERNEL = load_ops("kernel")
SHAPE = (3, 4, 6, 5)
ORDERS = pytest.mark.parametrize(
    "order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def calls(device, order, dtype=torch.float32) -> dict:
    """Arguments for every operator, including the inner steps of the loss."""
    prediction, x0, eps, key, alpha, sigma, weight = example(SHAPE, dtype, device, order)
    with_gradient = prediction.clone(memory_format=torch.preserve_format).requires_grad_()
    step = (prediction, x0, None, key, alpha, sigma, weight, 0.05)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = (torch.ones(4, dtype=wide, device=device), torch.zeros(4, dtype=wide, device=device))
    statistics = torch.ones(
        2, 3, 2, dtype=wide, device=device
    ).unbind()  # mean and inverse deviation, [B, groups]
    per_column = (torch.ones(5, dtype=wide, device=device), torch.zeros(5, dtype=wide, device=device))
    of_rows = torch.ones(2, 3, 4, 6, dtype=wide, device=device).unbind()  # the same of each row
    return {
        "add_noise": (with_gradient, eps.clone().requires_grad_(), alpha, sigma),
        "add_keyed_noise": (with_gradient, key, alpha, sigma, 0.05),
        "keyed_normal": (key, *SHAPE[1:], 0.05),
        "v_loss": (with_gradient, x0, eps, alpha, sigma, weight, None),
        "keyed_v_loss": (with_gradient, x0, key, alpha, sigma, weight, 0.05, None),
        "v_loss_forward": (prediction, x0, eps, None, alpha, sigma, weight, 0.0, None),
        "v_loss_backward": (*step, weight),
        "v_loss_correct_": (prediction.clone(memory_format=torch.preserve_format), *step, weight, None),
        "channel_moments": (x0,),
        "geglu": (torch.cat([x0, eps], dim=-1).requires_grad_(),),
        "geglu_backward": (x0, torch.cat([x0, eps], dim=-1)),
        "group_norm_silu": (with_gradient, *parameters, 2, 1e-5),
        "group_norm_silu_forward": (prediction, *parameters, 2, 1e-5),
        "group_norm_silu_backward": (x0, prediction, *parameters, *statistics, 2, 1e-5),
        "layer_norm": (with_gradient, *per_column, 1e-5),
        "layer_norm_forward": (prediction, *per_column, 1e-5),
        "layer_norm_backward": (x0, prediction, *per_column, *of_rows, 1e-5),
    }


@ORDERS
@pytest.mark.parametrize("name", list(calls("cpu", torch.contiguous_format)))
def test_opcheck(name, order, device):
    torch.library.opcheck(getattr(torch.ops.refimpl, name).default, calls(device, order)[name])


def training_step(ops, prediction, x0, eps, key, alpha, sigma, weight):
    """Every operation once, in one function."""
    x_t = ops.add_noise(x0, eps, alpha, sigma) + ops.add_keyed_noise(x0, key, alpha, sigma, 0.05)
    noise = ops.keyed_normal(key, SHAPE[1:], 0.05)
    _, mean, m2 = ops.channel_moments(x_t + noise)
    prediction = prediction + ops.geglu(torch.cat([prediction, x0], dim=-1))
    prediction = ops.group_norm_silu(prediction, prediction.new_ones(4), prediction.new_zeros(4), 2, 1e-5)
    prediction = ops.layer_norm(prediction, prediction.new_ones(5), prediction.new_zeros(5), 1e-5)
    loss = ops.v_loss(2 * prediction, x0, eps, alpha, sigma, weight)
    keyed = ops.keyed_v_loss(prediction + 1, x0, key, alpha, sigma, weight, 0.05)
    return x_t, mean, m2, (loss + keyed).mean()


@ORDERS
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic, order, device):
    # aot_eager traces and functionalises as inductor does, without its minute of C++ compilation
    compiled = torch.compile(training_step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    prediction, *rest = example(SHAPE, torch.float32, device, order)
    results = []
    for step in (training_step, compiled):
        leaf = prediction.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        x_t, mean, m2, loss = step(KERNEL, leaf, *rest)
        (gradient,) = torch.autograd.grad(loss, leaf)
        results.append((x_t, mean, m2, loss.detach(), gradient))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)
        assert eager.stride() == traced.stride()


@pytest.mark.slow
def test_compile_with_inductor(device):
    compiled = torch.compile(training_step, fullgraph=True)
    prediction, *rest = example(SHAPE, torch.float32, device)
    results = []
    for step in (training_step, compiled):
        leaf = prediction.detach().clone().requires_grad_()
        *values, loss = step(KERNEL, leaf, *rest)
        results.append((*values, loss.detach(), *torch.autograd.grad(loss, leaf)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced)


def test_export(device):
    class Step(torch.nn.Module):
        def forward(self, *arguments):
            return training_step(KERNEL, *arguments)

    arguments = example(SHAPE, torch.float32, device)
    program = torch.export.export(Step(), arguments)
    names = {node.target.name() for node in program.graph.nodes if hasattr(node.target, "name")}
    public = (
        "add_noise",
        "add_keyed_noise",
        "keyed_normal",
        "channel_moments",
        "v_loss",
        "keyed_v_loss",
        "geglu",
        "group_norm_silu",
        "layer_norm",
    )
    assert {f"refimpl::{name}" for name in public} <= names
    for ours, exported in zip(Step()(*arguments), program.module()(*arguments), strict=True):
        assert torch.equal(ours, exported)


@ORDERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_fake_results_have_the_real_shapes(dtype, order, device):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("the CUDA kernels have no float64: the reference runs there")
    for name, arguments in calls(device, order, dtype).items():
        operator = getattr(torch.ops.refimpl, name).default
        with torch.no_grad():
            real = operator(*arguments)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fake = operator(
                    *(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments)
                )
        if real is None:
            continue
        for r, f in zip(
            (real,) if isinstance(real, torch.Tensor) else real,
            (fake,) if isinstance(fake, torch.Tensor) else fake,
            strict=True,
        ):
            assert (r.shape, r.dtype, r.device, r.stride()) == (f.shape, f.dtype, f.device, f.stride()), name


def test_fake_strides_of_a_single_channel_are_the_real_ones(device):
    """One channel is in both memory orders at once, whatever its stride says."""
    x = torch.zeros(2, 1, 4, 5, device=device).as_strided((2, 1, 4, 5), (20, 1, 5, 1))
    a = torch.ones(2, device=device)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = KERNEL.add_noise(*(mode.from_tensor(t) for t in (x, x, a, a)))
    assert fake.stride() == KERNEL.add_noise(x, x, a, a).stride()


def test_fake_tensors_of_wrong_shapes_are_refused():
    with FakeTensorMode():
        x, a = torch.empty(2, 4, 5, 5), torch.empty(2)
        with pytest.raises(ValueError, match=r"eps has shape \[2, 4, 5, 6\]"):
            KERNEL.add_noise(x, torch.empty(2, 4, 5, 6), a, a)
        with pytest.raises(ValueError, match="give one per sample"):
            KERNEL.v_loss(x, x, x, a, a, torch.empty(3))
        with pytest.raises(ValueError, match=r"bias has shape \[2\] on cpu and x \[2, 4, 5, 5\] on cpu"):
            KERNEL.layer_norm(x, torch.empty(5), a, 1e-5)


@pytest.mark.parametrize("on_meta", ["x", "weight", "bias"])
def test_norms_refuse_a_tensor_that_was_left_on_the_meta_device(on_meta):
    """It is enough to have the fake kernel called, which leaves a real result as it was allocated."""
    tensors = {"x": torch.ones(2, 4, 3, 3), "weight": torch.ones(4), "bias": torch.ones(4)}
    tensors[on_meta] = tensors[on_meta].to("meta")
    with pytest.raises(ValueError, match=r"has shape \[4\] on .* and x .* on .*: give one per channel"):
        KERNEL.group_norm_silu(**tensors, groups=2, eps=1e-5)
    with pytest.raises(ValueError, match=r"has shape \[4\] on .* and x .* on .*: give one per channel"):
        KERNEL.layer_norm(tensors["x"].transpose(1, 3), tensors["weight"], tensors["bias"], 1e-5)


@pytest.mark.parametrize("on_meta", ["x0", "eps", "key", "alpha", "weight"])
def test_operations_on_latents_refuse_a_tensor_that_was_left_on_the_meta_device(on_meta):
    prediction, x0, eps, key, alpha, sigma, weight = example(SHAPE, torch.float32, "cpu")
    t = {
        "prediction": prediction,
        "x0": x0,
        "eps": eps,
        "key": key,
        "alpha": alpha,
        "sigma": sigma,
        "weight": weight,
    }
    t[on_meta] = t[on_meta].to("meta")
    calls = {
        KERNEL.add_noise: ("x0", "eps", "alpha", "sigma"),
        KERNEL.add_keyed_noise: ("x0", "key", "alpha", "sigma"),
        KERNEL.v_loss: ("prediction", "x0", "eps", "alpha", "sigma", "weight"),
        KERNEL.keyed_v_loss: ("prediction", "x0", "key", "alpha", "sigma", "weight"),
    }
    for operation, names in calls.items():
        if on_meta in names and (on_meta, operation) != (
            "x0",
            KERNEL.add_keyed_noise,
        ):  # whose result is there too
            with pytest.raises(ValueError, match=r"is on .* and x0 on "):
                operation(*(t[name] for name in names))


def test_cuda_graph(cuda):
    """A captured training step replays to the bits of the eager one, on new data."""
    arguments = example((4, 4, 104, 152), torch.bfloat16, cuda)
    static = [a.clone() for a in arguments]

    def step(prediction, x0, eps, key, alpha, sigma, weight):
        leaf = prediction.detach().requires_grad_()
        loss = KERNEL.v_loss(leaf, x0, eps, alpha, sigma, weight)
        keyed = KERNEL.keyed_v_loss(leaf, x0, key, alpha, sigma, weight, 0.05)
        gradient = torch.autograd.grad((loss + keyed).mean(), leaf)[0]
        return KERNEL.add_keyed_noise(x0, key, alpha, sigma, 0.05), loss.detach(), gradient

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*static)
    for old, new in zip(static, arguments, strict=True):
        old.copy_(new.flip(0))
    graph.replay()
    for replayed, eager in zip(captured, step(*(a.flip(0) for a in arguments)), strict=True):
        assert torch.equal(replayed, eager)
