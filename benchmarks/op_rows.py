"""What each operation is compared with: one callable per column, the same for the table and for pytest-benchmark.

`v_loss` is the forward and the backward pass with the batch's mean in between; its column "kernel alone" computes the
same loss and gradient without autograd. `step` is what a training step asks for, the noised latents and the loss with
its gradient, and `keyed step` the same with the drawing of the noise. `adamw_ema` is what follows the gradient, on
float32 weights of the batch's shape (update_rows.py names the columns); `geglu`, `group_norm_silu` and `layer_norm`
are in network_rows.py.
"""

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from benchmarks import network_rows, update_rows
from benchmarks.shapes import Inputs
from refimpl.ops import load_ops
from tests.ops import checks

REFERENCE, KERNEL = load_ops("reference"), load_ops("kernel")
LOSS_AND_GRADIENT = torch.ops.refimpl.v_loss_forward.default
OFFSET = 0.05

# Column → what is timed; "kernel" is ours.
Columns = dict[str, Callable[[], object]]

# Operation → its columns, in the order of the table.
COLUMNS = {
    "add_noise": ("eager", "compile", "diffusers", "kernel"),
    "v_loss": ("eager", "compile", "diffusers", "kernel", "kernel alone"),
    "step": ("eager", "compile", "diffusers", "kernel"),
    "keyed_normal": ("randn", "kernel"),
    "keyed step": ("eager", "kernel"),
    "channel_moments": ("eager", "kernel"),
    "adamw_ema": ("torch", "grad_scale", "kernel", "torch alone", "kernel alone"),
    **network_rows.COLUMNS,
}


def assert_agreement(x: Inputs) -> None:
    """The checks of the test suite on these very tensors."""
    incoming = torch.full_like(x.weight, 1 / len(x.weight))
    checks.check_add_noise(KERNEL, x.x0, x.eps, x.alpha, x.sigma)
    checks.check_v_loss(KERNEL, x.prediction, x.x0, x.eps, x.alpha, x.sigma, x.weight, incoming)
    checks.check_add_keyed_noise(KERNEL, x.x0, x.key, x.alpha, x.sigma, OFFSET)
    checks.check_keyed_v_loss(KERNEL, x.prediction, x.x0, x.key, x.alpha, x.sigma, x.weight, OFFSET, incoming)
    checks.check_channel_moments(KERNEL, x.x0)
    update_rows.assert_agreement([x.x0.shape], str(x.x0.device))
    network_rows.assert_agreement(x)


def backward(loss: Tensor, prediction: Tensor) -> Tensor:
    """The gradient of the batch's mean."""
    return torch.autograd.grad(loss.mean(), prediction)[0]


def compiled(function: Callable) -> Callable:
    """torch.compile for one shape: on a CPU its code for any shape took up to 1.4 times as long."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def rows(x: Inputs) -> dict[str, Columns]:
    """The columns of each operation's row, over the tensors of x."""
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    noising, scalars = (x.alpha, x.sigma), (x.alpha, x.sigma, x.weight)
    shape = tuple(x.x0.shape[1:])
    prediction = x.prediction.detach()

    # Functions of their own for torch.compile, which share no cache entry with eager calls.
    def noised(x0, eps, alpha, sigma):
        return REFERENCE.add_noise(x0, eps, alpha, sigma)

    def mean_loss(prediction, x0, eps, alpha, sigma, weight):
        return REFERENCE.v_loss(prediction, x0, eps, alpha, sigma, weight).mean()

    compiled_noised, compiled_loss = compiled(noised), compiled(mean_loss)

    def diffusers_noised() -> Tensor:
        return scheduler.add_noise(x.x0, x.eps, x.t)  # pyright: ignore[reportArgumentType]

    def diffusers_loss() -> Tensor:
        """Target, weighted mean square per sample and backward, as diffusers' training scripts write it."""
        target = scheduler.get_velocity(x.x0, x.eps, x.t)  # pyright: ignore[reportArgumentType]
        loss = torch.nn.functional.mse_loss(x.prediction.float(), target.float(), reduction="none")
        return backward(loss.mean(dim=(1, 2, 3)) * x.weight, x.prediction)

    def loss_of(ops) -> Tensor:
        return backward(ops.v_loss(x.prediction, x.x0, x.eps, *scalars), x.prediction)

    def step_of(ops) -> tuple[Tensor, Tensor]:
        return ops.add_noise(x.x0, x.eps, *noising), loss_of(ops)

    def loss_of_compiled() -> Tensor:
        return backward(compiled_loss(x.prediction, x.x0, x.eps, *scalars), x.prediction)

    def step_of_compiled() -> tuple[Tensor, Tensor]:
        """Two functions, as the network runs between them."""
        return compiled_noised(x.x0, x.eps, *noising), loss_of_compiled()

    def eager_drawing_step() -> tuple[Tensor, Tensor]:
        eps = torch.randn_like(x.x0)
        x_t = REFERENCE.add_noise(x.x0, eps, *noising)
        return x_t, backward(REFERENCE.v_loss(x.prediction, x.x0, eps, *scalars), x.prediction)

    def keyed_step() -> tuple[Tensor, Tensor]:
        """The noise is drawn in both operations and never stored."""
        x_t = KERNEL.add_keyed_noise(x.x0, x.key, *noising)
        return x_t, backward(KERNEL.keyed_v_loss(x.prediction, x.x0, x.key, *scalars), x.prediction)

    return {
        "add_noise": {
            "eager": lambda: REFERENCE.add_noise(x.x0, x.eps, *noising),
            "compile": lambda: compiled_noised(x.x0, x.eps, *noising),
            "diffusers": diffusers_noised,
            "kernel": lambda: KERNEL.add_noise(x.x0, x.eps, *noising),
        },
        "v_loss": {
            "eager": lambda: loss_of(REFERENCE),
            "compile": loss_of_compiled,
            "diffusers": diffusers_loss,
            "kernel": lambda: loss_of(KERNEL),
            "kernel alone": lambda: LOSS_AND_GRADIENT(prediction, x.x0, x.eps, None, *scalars, 0.0, None),
        },
        "step": {
            "eager": lambda: step_of(REFERENCE),
            "compile": step_of_compiled,
            "diffusers": lambda: (diffusers_noised(), diffusers_loss()),
            "kernel": lambda: step_of(KERNEL),
        },
        "keyed_normal": {
            "randn": lambda: torch.randn(x.x0.shape),
            "kernel": lambda: KERNEL.keyed_normal(x.key, shape),
        },
        "keyed step": {"eager": eager_drawing_step, "kernel": keyed_step},
        "channel_moments": {
            "eager": lambda: REFERENCE.channel_moments(x.x0),
            "kernel": lambda: KERNEL.channel_moments(x.x0),
        },
        "adamw_ema": update_rows.columns(update_rows.trained([x.x0.shape], str(x.x0.device))),
        **network_rows.rows(x),
    }
