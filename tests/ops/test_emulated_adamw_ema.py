"""The source of adamw_ema_'s CUDA kernels, run on the CPU thread by thread, under the checks of the operation."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.adamw_checks import Call, after, check_adamw_ema, check_alone, check_repeatable, equal
from tests.ops.emulator.build import CSRC, HERE, link, shared_objects
from tests.ops.test_adamw_ema import MANY, SIZES, example
from tests.strategies import adamw_settings, adamw_tensors


@pytest.fixture(scope="module")
def adamw_ema_(tmp_path_factory) -> Callable[..., None]:
    """The operation over the emulated launcher; the binding's part in Python, for tensors in one memory order."""
    sources = [HERE / "emulated_adamw_ema.cpp", CSRC / "adamw_ema.cu"]
    path = tmp_path_factory.mktemp("emulator") / "emulated.so"
    library = ctypes.CDLL(str(link(sources, path, shared_objects(tmp_path_factory), "-shared")))

    def call(weights, gradients, exp_avgs, exp_avg_sqs, averages, steps, scale, found_inf, *numbers) -> None:
        n = len(weights)
        lists = (weights, gradients, exp_avgs, exp_avg_sqs, averages or [None] * n, steps)
        rows = [t.data_ptr() if t is not None else None for row in zip(*lists, strict=True) for t in row]
        status = library.emulated_adamw_ema(
            ctypes.c_int64(n),
            (ctypes.c_void_p * (6 * n))(*rows),
            (ctypes.c_int64 * n)(*(weight.numel() for weight in weights)),
            ctypes.c_void_p(scale.data_ptr()),
            ctypes.c_void_p(found_inf.data_ptr()),
            (ctypes.c_double * 6)(*numbers),
        )
        assert status == 0

    return call


@settings(max_examples=30)
@given(data=st.data())
def test_values(adamw_ema_, data):
    lists, scale, found_inf = data.draw(adamw_tensors())
    check_adamw_ema(adamw_ema_, Call(*lists, scale, found_inf, data.draw(adamw_settings())))


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize("shapes", [SIZES, SIZES[::-1], MANY, [(150_001,), (3,), (150_000,)], []])
def test_tiles_tails_and_launches(adamw_ema_, shapes, averages):
    """Tails, whole tiles, more tiles than blocks (the emulated GPU has 32), more tensors than one launch takes."""
    call = example(shapes, **({} if averages else {"averages": []}))
    check_adamw_ema(adamw_ema_, call)
    check_repeatable(adamw_ema_, call, repeats=1)
    check_alone(adamw_ema_, example(shapes[:4]))


@pytest.mark.parametrize("step", [0, 1, 100_000])
def test_steps(adamw_ema_, step):
    check_adamw_ema(adamw_ema_, example([(5,), (3000,)], step=step))


def test_a_gradient_that_is_not_finite_changes_nothing(adamw_ema_):
    check_adamw_ema(adamw_ema_, example(SIZES, found_inf=torch.tensor(1.0)))


def test_the_cpu_kernel_has_the_same_bits(adamw_ema_):
    """Here both take their corrections from one pow; a GPU's may differ in the last place of a float64."""
    from refimpl.ops.adamw_ema_kernel import adamw_ema_ as on_cpu

    for shapes in (SIZES, MANY):
        assert equal(after(adamw_ema_, example(shapes)), after(on_cpu, example(shapes)))
