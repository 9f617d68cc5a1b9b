"""What an implementation of adamw_ema_ must satisfy, shared by its tests on the CPU, on CUDA and emulated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refimpl.ops.adamw_ema import adamw_ema
from tests.ops.checks import assert_close

Lists = list[list[Tensor]]
INTS = torch.int32  # to compare float32 bit for bit


@dataclass(frozen=True)
class Call:
    """Arguments of adamw_ema_."""

    weights: Sequence[Tensor]
    gradients: Sequence[Tensor]
    exp_avgs: Sequence[Tensor]
    exp_avg_sqs: Sequence[Tensor]
    averages: Sequence[Tensor]
    """Empty: none are kept."""
    steps: Sequence[Tensor]
    scale: Tensor
    found_inf: Tensor
    settings: tuple[float, float, float, float, float, float]
    """learning_rate, beta1, beta2, epsilon, weight_decay, decay"""

    def lists(self) -> tuple[Sequence[Tensor], ...]:
        """Everything that a call changes, and the gradients."""
        return self.weights, self.gradients, self.exp_avgs, self.exp_avg_sqs, self.averages, self.steps

    def copied(self) -> "Call":
        """The same values and memory orders in memory of their own."""
        names = ("weights", "gradients", "exp_avgs", "exp_avg_sqs", "averages", "steps")
        copies = {name: [same_place(t) for t in getattr(self, name)] for name in names}
        return replace(self, **copies)

    def to(self, device: str) -> "Call":
        """On a device, with the strides and the alignment that the tensors have."""
        names = ("weights", "gradients", "exp_avgs", "exp_avg_sqs", "averages", "steps")
        moved = {name: [same_place(t, device) for t in getattr(self, name)] for name in names}
        return replace(self, **moved, scale=self.scale.to(device), found_inf=self.found_inf.to(device))


def same_place(tensor: Tensor, device: str | None = None) -> Tensor:
    """A copy with the same strides, as far from a 16-byte boundary as the original."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    gap = tensor.storage_offset() % 4
    storage = torch.zeros(gap + max(extent, 1), dtype=tensor.dtype, device=device or tensor.device)
    return storage.as_strided(tensor.shape, tensor.stride(), gap).copy_(tensor)


def after(adamw_ema_: Callable[..., None], call: Call) -> Call:
    """What a call leaves, on copies of its arguments."""
    call = call.copied()
    adamw_ema_(*call.lists(), call.scale, call.found_inf, *call.settings)
    return call


def check_adamw_ema(adamw_ema_: Callable[..., None], call: Call) -> None:
    """Every tensor agrees with the definition, or with what it was where the gradient is not finite."""
    result = after(adamw_ema_, call)
    for gradient, before in zip(result.gradients, call.gradients, strict=True):
        assert same_bits(gradient, before), "the gradients are only read"
    if call.found_inf.item() != 0:
        for ours, before in zip(result.lists(), call.lists(), strict=True):
            assert all(same_bits(a, b) for a, b in zip(ours, before, strict=True)), "nothing may change"
        return
    for k in range(len(call.weights)):
        _check_tensor(result, call, k)


def _check_tensor(result: Call, call: Call, k: int) -> None:
    learning_rate, beta1, beta2, epsilon, weight_decay, decay = call.settings
    tensors = [call.weights[k], call.gradients[k], call.exp_avgs[k], call.exp_avg_sqs[k]]
    tensors.append(call.averages[k] if call.averages else call.weights[k])
    tensors = [*tensors, call.steps[k], call.scale, call.found_inf]
    eager = adamw_ema(*tensors, *call.settings)
    exact = adamw_ema(*(t.double().cpu() for t in tensors), *call.settings)
    w, g, m, v, average = (t.double().cpu().abs() for t in tensors[:5])
    g = g * call.scale.item()
    t = call.steps[k].item() + 1
    assert result.steps[k].item() == t
    terms_m = m + g
    terms_v = v + g.square()
    denominator = (exact[2] / (1 - beta2**t)).sqrt() + epsilon
    pull = terms_m / (1 - beta1**t) / denominator  # 1 − beta1 is rounded: m errs by roundings of m + g
    terms_w = w + learning_rate * (pull + weight_decay * w)
    assert_close(result.exp_avgs[k], eager[1], exact[1], terms_m)
    assert_close(result.exp_avg_sqs[k], eager[2], exact[2], terms_v)
    assert_close(result.weights[k], eager[0], exact[0], terms_w)
    if call.averages:
        assert_close(result.averages[k], eager[3], exact[3], average + terms_w)
        if decay == 0:
            assert torch.equal(result.averages[k], result.weights[k]), "at decay 0 it is the weights"


def check_repeatable(adamw_ema_: Callable[..., None], call: Call, repeats: int = 3) -> None:
    """Equal bits on every run."""
    first = after(adamw_ema_, call)
    for _ in range(repeats):
        assert equal(first, after(adamw_ema_, call)), "two runs differ"


def check_alone(adamw_ema_: Callable[..., None], call: Call) -> None:
    """A tensor has the bits that it has alone, with and without an average."""
    together = after(adamw_ema_, call)
    for k in range(len(call.weights)):
        one = Call(*([t[k]] if t else [] for t in call.lists()), call.scale, call.found_inf, call.settings)
        for ours, alone in zip(together.lists(), after(adamw_ema_, one).lists(), strict=True):
            assert not ours or same_bits(ours[k], alone[0]), f"tensor {k} depends on the others"
    without = after(adamw_ema_, replace(call, averages=[]))
    for name in ("weights", "exp_avgs", "exp_avg_sqs", "steps"):
        for a, b in zip(getattr(together, name), getattr(without, name), strict=True):
            assert same_bits(a, b), f"{name} depend on whether averages are kept"


def equal(a: Call, b: Call) -> bool:
    """All lists, bit for bit."""
    return all(
        same_bits(x, y)
        for ours, others in zip(a.lists(), b.lists(), strict=True)
        for x, y in zip(ours, others, strict=True)
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Also of infinities, NaNs and signed zeros."""
    return torch.equal(a.contiguous().view(INTS), b.contiguous().view(INTS))
