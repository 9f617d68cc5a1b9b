"""AdamW and the moving average in one pass against their definition: values, sizes, memory, determinism, tracing."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from refimpl.errors import InputError
from refimpl.ops import _kernels
from refimpl.ops.adamw_ema import adamw_ema
from refimpl.ops.adamw_ema_kernel import adamw_ema_
from tests.ops.adamw_checks import (
    Call,
    after,
    check_adamw_ema,
    check_alone,
    check_repeatable,
    equal,
    same_place,
)
from tests.strategies import adamw_settings, adamw_tensors
from tests.tolerances import FLOAT32_STEPS

SETTINGS = (1e-3, 0.9, 0.999, 1e-8, 0.01, 0.995)
# Around the vectors of 4, the tiles of 2048 and the chunks of 4096; more tensors than one launch on CUDA takes.
SIZES = [(4,), (3, 5), (0,), (1,), (2048,), (2049,), (4096,), (4097,), (8193, 3)]
MANY = [(k % 7 + 1, k % 5) for k in range(500)]


def example(shapes, device="cpu", order=torch.contiguous_format, step=3, **changed) -> Call:
    """Normal values, moments as after some steps, from `step` on, and averages near the weights."""
    generator = torch.Generator().manual_seed(sum(math.prod(shape) for shape in shapes))

    def normal() -> list[torch.Tensor]:
        tensors = [torch.randn(shape, generator=generator) for shape in shapes]
        return [t.contiguous(memory_format=order) if t.ndim == 4 else t for t in tensors]

    weights = normal()
    call = Call(
        weights,
        normal(),
        [0.1 * m for m in normal()],
        [v.square() for v in normal()],
        [w + 0.01 * e for w, e in zip(weights, normal(), strict=True)],
        [torch.tensor(float(step + k % 3)) for k in range(len(shapes))],
        torch.tensor(0.7),
        torch.tensor(0.0),
        SETTINGS,
    )
    return replace(call, **changed).to(device)


@settings(max_examples=60)
@given(data=st.data())
def test_values(device, data):
    lists, scale, found_inf = data.draw(adamw_tensors())
    call = Call(*lists, scale, found_inf, data.draw(adamw_settings())).to(device)
    check_adamw_ema(adamw_ema_, call)


@pytest.mark.parametrize("shapes", [SIZES, SIZES[::-1], MANY, []], ids=["sizes", "reversed", "many", "none"])
@pytest.mark.parametrize("step", [0, 1, 100_000])
def test_sizes_and_steps(shapes, step, device):
    check_adamw_ema(adamw_ema_, example(shapes, device, step=step))
    check_alone(adamw_ema_, example(shapes[:9], device, step=step))


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e15, 1e30])
def test_zero_tiny_and_huge_gradients(size, found_inf, device):
    call = example(SIZES, device, found_inf=torch.tensor(found_inf))
    call = replace(call, gradients=[size * g for g in call.gradients])
    check_adamw_ema(adamw_ema_, call)


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": (1e-3, 0.9, 0.999, 1e-8, 0.0, 0.995)},  # no weight decay
        {"settings": (1e-3, 0.9, 0.999, 1e-8, 0.01, 0.0)},  # averages are the weights
        {"settings": (1e-3, 0.0, 0.0, 1e-8, 0.01, 0.4)},  # moments are the last gradient's
        {"settings": (0.0, 0.9, 0.999, 1e-8, 0.01, 0.995)},  # the learning rate at the end of a cosine
        {"settings": (0.5, 0.4, 0.45, 1e-3, 1.0, 0.5)},
        {"scale": torch.tensor(1.0)},
        {"scale": torch.tensor(1e-20)},
        {"averages": []},
    ],
)
def test_settings_at_their_ends(changed, device):
    check_adamw_ema(adamw_ema_, example(SIZES, device, step=0, **changed))


def test_a_gradient_that_is_not_finite_stays_where_it_is(device):
    """Only where found_inf does not say so: the caller sums all gradients first."""
    call = example([(9,), (9,)], device)
    call.gradients[0][4] = math.nan
    result = after(adamw_ema_, call)
    assert result.weights[0].isnan().sum() == 1
    assert result.averages[0].isnan().nonzero().tolist() == [[4]]
    assert bool(result.weights[1].isfinite().all())


def test_against_torchs_fused_adamw(device):
    """And its lerp: each rounds for itself."""
    call = example(SIZES, device)
    ours, others = after(adamw_ema_, call), call.copied()
    gradients = [call.scale * g for g in others.gradients]
    steps = [step.add_(1) for step in others.steps]
    rate, beta1, beta2, epsilon, weight_decay, decay = SETTINGS
    torch._fused_adamw_(
        others.weights, gradients, others.exp_avgs, others.exp_avg_sqs, [], steps, lr=rate, beta1=beta1,
        beta2=beta2, weight_decay=weight_decay, eps=epsilon, amsgrad=False, maximize=False,
    )  # fmt: skip
    torch._foreach_lerp_(others.averages, others.weights, 1 - decay)
    rounding = FLOAT32_STEPS * torch.finfo(torch.float32).eps
    for name in ("weights", "exp_avgs", "exp_avg_sqs", "averages", "steps"):
        for a, b in zip(getattr(ours, name), getattr(others, name), strict=True):
            torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)


def test_unaligned_tensors(device):
    """Element by element, to the same bits."""
    call = example([(4096,), (12,), (2052,)], device)

    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        storage = torch.zeros(len(tensor) + 1, device=tensor.device)
        storage[1:] = tensor
        return storage[1:]

    plain = after(adamw_ema_, call)
    for name in ("weights", "gradients", "exp_avgs", "exp_avg_sqs", "averages"):
        moved = replace(call, **{name: [shifted(t) for t in getattr(call, name)]})
        assert getattr(moved, name)[0].data_ptr() % 16
        assert equal(plain, after(adamw_ema_, moved)), name


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize("name", ["gradients", "exp_avgs", "exp_avg_sqs", "averages"])
def test_a_tensor_in_another_memory_order_than_its_weight(name, order, device):
    call = example([(3, 4, 5, 2), (7,)], device, order)
    other = torch.channels_last if order == torch.contiguous_format else torch.contiguous_format
    tensors = getattr(call, name)
    moved = replace(call, **{name: [tensors[0].contiguous(memory_format=other), tensors[1]]})
    result = after(adamw_ema_, moved)
    assert getattr(result, name)[0].stride() == getattr(moved, name)[0].stride()
    assert equal(after(adamw_ema_, call), result)


def test_runs_threads_and_instruction_sets_give_the_same_bits(device):
    call = example([*SIZES, (300, 1001)], device)
    check_repeatable(adamw_ema_, call)
    if device == "cuda":
        return
    first, threads = after(adamw_ema_, call), torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert equal(first, after(adamw_ema_, call)), f"{n} threads"
        for isa in ("plain", "avx2", "avx512"):
            try:
                _kernels.use_isa(isa)
            except ValueError:
                continue  # this processor does not have it
            assert equal(first, after(adamw_ema_, call)), isa
    finally:
        torch.set_num_threads(threads)
        _kernels.use_isa("best")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gradients": []}, ValueError, "the lists have 1 weights, 0 gradients"),
        ({"averages": [torch.zeros(2)] * 2}, ValueError, "2 averages"),
        ({"exp_avgs": [torch.zeros(3)]}, ValueError, r"exp_avgs\[0\] has shape \[3\] and weights\[0\] \[2\]"),
        ({"gradients": [torch.zeros(2).double()]}, TypeError, r"gradients\[0\] must be float32, got Double"),
        ({"weights": [torch.zeros(2).bfloat16()]}, TypeError, r"weights\[0\] must be float32"),
        ({"weights": [torch.zeros(4)[::2]]}, ValueError, "without gaps"),
        ({"steps": [torch.zeros(2)]}, ValueError, r"steps\[0\] must be one float32 value on cpu"),
        ({"scale": torch.zeros(2)}, ValueError, "scale must be one float32 value on cpu"),
        ({"found_inf": torch.tensor(0)}, ValueError, "found_inf must be one float32 value on cpu, got Long"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    call = replace(example([(2,)]), **change)
    with pytest.raises(error, match=message):
        adamw_ema_(*call.lists(), call.scale, call.found_inf, *call.settings)


def test_the_definition_refuses_tensors_of_other_shapes():
    x, one = torch.zeros(2), torch.zeros(())
    with pytest.raises(InputError, match=r"average has shape \[3\] and weight \[2\]"):
        adamw_ema(x, x, x, x, torch.zeros(3), one, one, one, *SETTINGS)


def test_autograd_notices_that_a_weight_has_changed(device):
    call = example([(5,)], device)
    weight = call.weights[0].requires_grad_()
    loss = weight.square().sum()
    with torch.no_grad():
        adamw_ema_(*call.lists(), call.scale, call.found_inf, *call.settings)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_opcheck(device):
    for changed in ({}, {"averages": []}):
        call = example([(3, 5), (1,)], device, **changed)
        arguments = (*call.lists(), call.scale, call.found_inf, *call.settings)
        torch.library.opcheck(torch.ops.refimpl.adamw_ema_.default, arguments)


def test_compile_without_graph_breaks(device):
    def step(call: Call) -> None:
        adamw_ema_(*call.lists(), 2 * call.scale, call.found_inf, *call.settings)

    eager, traced = (example([(3, 5), (9,)], device) for _ in range(2))
    step(eager)
    torch.compile(step, fullgraph=True, backend="aot_eager")(traced)
    assert equal(eager, traced)


def test_fake_tensors_of_wrong_shapes_are_refused():
    call = example([(2,)])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [[mode.from_tensor(t) for t in tensors] for tensors in call.lists()]
        with pytest.raises(ValueError, match="they must agree"):
            adamw_ema_(fake[0], [], *fake[2:], call.scale, call.found_inf, *call.settings)
        with pytest.raises(ValueError, match=r"\[3\] and its weight \[2\]"):
            adamw_ema_(fake[0], [torch.empty(3)], *fake[2:], call.scale, call.found_inf, *call.settings)


def test_cuda_graph(cuda):
    """A captured step goes on counting when it is replayed."""
    call = example(SIZES, cuda)
    eager, captured = call.copied(), call.copied()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        adamw_ema_(*call.copied().lists(), call.scale, call.found_inf, *call.settings)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        adamw_ema_(*captured.lists(), call.scale, call.found_inf, *call.settings)
    for _ in range(3):
        graph.replay()
        adamw_ema_(*eager.lists(), call.scale, call.found_inf, *call.settings)
    assert equal(eager, captured)


def double_bias_correction(weights, gradients, exp_avgs, exp_avg_sqs, averages, steps, *rest):
    """A planted bug: the step is counted once per tensor and once more."""
    adamw_ema_(weights, gradients, exp_avgs, exp_avg_sqs, averages, [s.add_(1) for s in steps], *rest)


def average_of_the_old_weights(weights, gradients, exp_avgs, exp_avg_sqs, averages, steps, *rest):
    """A planted bug: the average moves before the weights do."""
    torch._foreach_lerp_(averages, weights, 1 - rest[-1])
    adamw_ema_(weights, gradients, exp_avgs, exp_avg_sqs, [], steps, *rest)


def scale_left_out(weights, gradients, exp_avgs, exp_avg_sqs, averages, steps, scale, *rest):
    """A planted bug: the gradient is not clipped."""
    adamw_ema_(weights, gradients, exp_avgs, exp_avg_sqs, averages, steps, torch.ones_like(scale), *rest)


def tail_left_out(*arguments):
    """A planted bug: vectors of 16, and no loop for the rest."""
    lists = [[t.flatten()[: t.numel() // 16 * 16] for t in tensors] for tensors in arguments[:5]]
    adamw_ema_(*lists, *arguments[5:])


@pytest.mark.parametrize(
    "bug", [double_bias_correction, average_of_the_old_weights, scale_left_out, tail_left_out]
)
def test_planted_bugs_are_caught(bug):
    with pytest.raises(AssertionError):
        check_adamw_ema(bug, example([(33,)]))


def test_copies_keep_their_place():
    """What the other tests rely on: a copy is as aligned as its original."""
    tensor = torch.arange(12.0)[1:].view(11)
    assert same_place(tensor).storage_offset() == 1
    assert torch.equal(same_place(tensor), tensor)
