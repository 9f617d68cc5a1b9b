"""What a user of the nodes sees: names, inputs, ranges, errors, and the resulting numbers."""

import math
from typing import Any

import pytest
import torch

from refimpl.comfyui.levels import STAND_IN_FOR_INFINITY
from refimpl.comfyui.nodes import (
    NODE_CLASS_MAPPINGS,
    NODE_DISPLAY_NAME_MAPPINGS,
    CFGRescaleNode,
    LaplaceSchedulerNode,
    NAINativeSchedulerNode,
    ZsnrVpredConditioningNode,
)
from refimpl.diffusion.min_snr import min_snr_weight
from refimpl.errors import InputError
from refimpl.sample.grids import laplace, native
from refimpl.sample.weighted_grid import weighted
from tests.comfyui import stub
from tests.comfyui.gaussian_model import model, noise, zsnr_model
from tests.sample.schedules import PLAIN, ZERO_SNR
from tests.tolerances import FLOAT32_ROUNDING, SAMPLED_FLOAT32

ZSNR: dict[str, Any] = {
    "zsnr": "true",
    "v_prediction": "true",
    "sigma_min": 0.0292,
    "sigma_data": 1.0,
    "min_snr_gamma": 5.0,
    "resolution_scaling": "true",
}


def test_names_and_categories_are_the_community_trainers() -> None:
    assert NODE_DISPLAY_NAME_MAPPINGS == {
        "ZsnrVpredConditioningNode": "ZSNR V-Prediction",
        "CFGRescaleNode": "CFG Rescale",
        "LaplaceSchedulerNode": "Laplace Scheduler",
        "NAINativeSchedulerNode": "NAI Native Scheduler",
    }
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    categories = [node.CATEGORY for node in NODE_CLASS_MAPPINGS.values()]  # type: ignore[attr-defined]
    assert categories == ["conditioning", "sampling", "sampling", "sampling"]
    assert list(ZsnrVpredConditioningNode.INPUT_TYPES()["required"]) == ["model", *ZSNR]
    assert list(CFGRescaleNode.INPUT_TYPES()["required"])[1:] == [
        "rescale_cfg",
        "scale_method",
        "rescale_multiplier",
    ]
    assert list(LaplaceSchedulerNode.INPUT_TYPES()["required"]) == ["model", "mu", "beta"]


@pytest.mark.parametrize("node", NODE_CLASS_MAPPINGS.values(), ids=lambda node: node.__name__)
def test_every_default_is_accepted_and_every_declaration_is_comfyuis(node: Any) -> None:
    declared = node.INPUT_TYPES()
    everything = {**declared["required"], **declared.get("optional", {})}
    for kind, *options in everything.values():
        if isinstance(kind, list):
            assert options[0]["default"] in kind
        elif kind in ("INT", "FLOAT"):
            assert options[0]["min"] <= options[0]["default"] <= options[0]["max"]
            assert options[0]["step"] > 0
    defaults = {name: options[0]["default"] for name, (_, *options) in everything.items() if options}
    outputs = getattr(node(), node.FUNCTION)(model=zsnr_model(), **defaults)
    assert len(outputs) == len(node.RETURN_TYPES)


@pytest.mark.parametrize("node", NODE_CLASS_MAPPINGS.values(), ids=lambda node: node.__name__)
def test_every_wrong_input_is_refused_by_name_and_value(node: Any) -> None:
    declared = node.INPUT_TYPES()
    everything = {**declared["required"], **declared.get("optional", {})}
    everything.pop("model")
    defaults = {name: options["default"] for name, (_, options) in everything.items()}
    for name, (kind, options) in everything.items():
        if isinstance(kind, list):
            wrong: list[Any] = ["", "tru", None, 7]
        else:
            wrong = [options["min"] - 1, options["max"] + 1, math.nan, math.inf, "many", None, [1]]
            wrong += [1.5] if kind == "INT" else []
        for value in wrong:
            with pytest.raises(InputError, match=f"{node.__name__}.{name}") as refused:
                getattr(node(), node.FUNCTION)(model=zsnr_model(), **{**defaults, name: value})
            assert repr(value) in str(refused.value) or str(value) in str(refused.value)


def test_eps_prediction_with_zero_snr_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="cannot be used with a zero-terminal-SNR schedule"):
        ZsnrVpredConditioningNode().apply_conditioning(model(), **{**ZSNR, "v_prediction": "false"})


def test_defaults_give_pure_noise_and_the_community_trainers_lowest_level() -> None:
    patched, *_ = ZsnrVpredConditioningNode().apply_conditioning(model(), **ZSNR)
    sampling = patched.get_model_object("model_sampling")
    assert float(sampling.sigma_max) == STAND_IN_FOR_INFINITY
    assert float(sampling.sigma_min) == pytest.approx(0.0292, rel=FLOAT32_ROUNDING)
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(patched, 28)
    expected = native(ZERO_SNR, 28).clamp(max=STAND_IN_FOR_INFINITY)
    expected[-2] = 0.0292  # the schedule's own is 0.02917
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, expected.float())


def test_each_of_the_four_settings_acts() -> None:
    """Zero terminal SNR, v, the least level and σd: each changes what it is said to, and nothing of the others."""

    def sampling(**changes: Any) -> Any:
        inputs = {**ZSNR, **changes}
        return (
            ZsnrVpredConditioningNode()
            .apply_conditioning(model(), **inputs)[0]
            .get_model_object("model_sampling")
        )

    def denoised(own: Any) -> torch.Tensor:
        return own.calculate_denoised(own.sigma_max, output, own.sigma_max * noise(2, 4, 2, 2))

    output, default = noise(4, 4, 2, 2)[:2], sampling()
    assert torch.equal(denoised(default), -output)  # eq. 18: at ∞, D = −σd·F
    for sigma_data in (0.5, 2.0):
        other = sampling(sigma_data=sigma_data)
        assert torch.equal(denoised(other), -sigma_data * output)
        x, level = noise(2, 4, 2, 2), torch.tensor(0.75)
        c_in = 1 / math.hypot(0.75, sigma_data)  # eq. 12
        assert torch.allclose(other.calculate_input(level, x), c_in * x, rtol=FLOAT32_ROUNDING, atol=0)
        assert torch.equal(other.sigmas, default.sigmas)
    for sigma_min in (0.1, 0.5):
        lowest = sampling(sigma_min=sigma_min)
        assert float(lowest.sigma_min) == pytest.approx(sigma_min, rel=FLOAT32_ROUNDING)
        assert float(lowest.sigma_max) == STAND_IN_FOR_INFINITY
    plain = sampling(zsnr="false")
    assert float(plain.sigma_max) == pytest.approx(14.614641229333639, rel=FLOAT32_ROUNDING)
    assert isinstance(plain, stub.V_PREDICTION)
    assert not isinstance(sampling(zsnr="false", v_prediction="false"), stub.V_PREDICTION)


@pytest.mark.parametrize(("width", "height", "sigma_max"), [(2048, 2048, 40000.0), (1216, 832, 19645.29)])
def test_the_canvas_scales_the_trivial_terminal_level(width: int, height: int, sigma_max: float) -> None:
    inputs = {**ZSNR, "width": width, "height": height, "terminal_sigma": "20000"}
    for scaling, expected in (("true", sigma_max), ("false", 20000.0)):
        inputs["resolution_scaling"] = scaling
        patched, *_ = ZsnrVpredConditioningNode().apply_conditioning(model(), **inputs)
        largest = float(patched.get_model_object("model_sampling").sigma_max)
        assert largest == pytest.approx(expected, rel=FLOAT32_ROUNDING)


def test_the_plain_schedule_doubles_with_the_side_as_n_figure_7() -> None:
    inputs = {**ZSNR, "zsnr": "false", "v_prediction": "false", "sigma_min": 0.0}
    patched, *_ = ZsnrVpredConditioningNode().apply_conditioning(model(), **inputs, width=2048, height=2048)
    sampling = patched.get_model_object("model_sampling")
    assert float(sampling.sigma_max) == pytest.approx(2 * 14.614641229333639, rel=FLOAT32_ROUNDING)
    assert torch.equal(sampling.sigmas[:-1], PLAIN.sigma_edm[:-1].float())
    assert not isinstance(sampling, stub.V_PREDICTION)


def test_min_snr_gamma_spaces_the_levels_and_leaves_the_model_alone() -> None:
    told, drawn, sigmas = {}, {}, {}
    for gamma in (1.0, 5.0, 20.0):
        patched, told[gamma], sigmas[gamma] = ZsnrVpredConditioningNode().apply_conditioning(
            model(), **{**ZSNR, "min_snr_gamma": gamma}
        )
        drawn[gamma] = stub.sample(
            patched, noise(1, 4, 2, 2), torch.tensor([STAND_IN_FOR_INFINITY, 3.0, 0.0])
        )
    assert told[5.0] == (
        "v-prediction, noise levels ∞ (pure noise) to 0.0292. Min-SNR γ = 5 spaces the levels of the output sigmas "
        "and changes nothing in the model; training with it gives timesteps 950 and later 0.0034% of the total "
        "weight."
    )
    assert "γ = 20" in told[20.0]
    assert torch.equal(drawn[1.0], drawn[20.0])
    below_half = [int(((levels > 0) & (levels < 0.5)).sum()) for levels in sigmas.values()]
    assert below_half == sorted(below_half)
    assert below_half[0] < below_half[-1]
    for levels in sigmas.values():
        assert levels.dtype == torch.float32
        assert levels.shape == (29,)
        assert float(levels[0]) == STAND_IN_FOR_INFINITY
        assert float(levels[-2]) == pytest.approx(0.0292, rel=FLOAT32_ROUNDING)
        assert (levels.diff() < 0).all()
    shares = weighted(ZERO_SNR, 28, min_snr_weight(ZERO_SNR.snr, 5.0, "snr_plus_one"))
    assert torch.allclose(sigmas[5.0][1:-3], shares[1:-3].float(), rtol=SAMPLED_FLOAT32, atol=0)
    assert float(sigmas[20.0][1]) < float(sigmas[1.0][1])  # fewer low levels leave more for the high ones


@pytest.mark.parametrize(("side", "steps"), [(512, 1), (512, 28), (2048, 28)])
def test_the_levels_of_the_node_end_where_its_models_do(side: int, steps: int) -> None:
    inputs = {**ZSNR, "zsnr": "false", "width": side, "height": side, "steps": steps, "sigma_min": 0.7}
    patched, _, sigmas = ZsnrVpredConditioningNode().apply_conditioning(model(), **inputs)
    sampling = patched.get_model_object("model_sampling")
    assert sigmas.shape == (steps + 1,)
    assert float(sigmas[0]) == pytest.approx(float(sampling.sigma_max), rel=FLOAT32_ROUNDING)
    assert steps == 1 or float(sigmas[-2]) == pytest.approx(0.7, rel=FLOAT32_ROUNDING)
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 28, 1000])
def test_the_native_schedule_is_the_projects(steps: int) -> None:
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(zsnr_model(), steps)
    assert sigmas.shape == (steps + 1,)
    assert torch.equal(sigmas, native(ZERO_SNR, steps).clamp(max=STAND_IN_FOR_INFINITY).float())
    assert (sigmas.diff() < 0).all()


def test_the_native_schedule_of_comfyuis_own_zero_snr_model() -> None:
    (sigmas,) = NAINativeSchedulerNode().apply_scheduler(model(stub.plain_sampling(zsnr=True)), 28)
    expected = native(ZERO_SNR, 28).float()
    assert float(sigmas[0]) == pytest.approx(4518.76, abs=0.01)  # its stand-in for ∞
    assert torch.allclose(sigmas[1:], expected[1:], rtol=SAMPLED_FLOAT32, atol=0)


def test_laplace_is_the_projects_grid_from_the_models_own_ends() -> None:
    (sigmas,) = LaplaceSchedulerNode().apply_scheduler(zsnr_model(), 0.3, 0.8, steps=12)
    assert float(sigmas[0]) == STAND_IN_FOR_INFINITY
    low = float(ZERO_SNR.sigma_edm[0].float())
    assert torch.equal(sigmas[1:], laplace(ZERO_SNR, 12, 0.3, 0.8, sigma_min=low)[1:].float())
    assert float(sigmas[-1]) == 0
    (trivial,) = LaplaceSchedulerNode().apply_scheduler(
        zsnr_model(terminal_sigma="20000"), 0.0, 0.5, steps=12
    )
    assert float(trivial[0]) == 20000
    (plain,) = LaplaceSchedulerNode().apply_scheduler(model(), 0.0, 0.5, steps=12)
    assert float(plain[0]) == pytest.approx(14.614641229333639, rel=FLOAT32_ROUNDING)


def test_laplace_takes_the_range_given() -> None:
    for patched in (zsnr_model(), model()):
        (sigmas,) = LaplaceSchedulerNode().apply_scheduler(patched, 0.0, 0.5, 9, sigma_min=0.1, sigma_max=8.0)
        assert torch.equal(sigmas, laplace(PLAIN, 9, 0.0, 0.5, 0.1, 8.0).float())
        # at the midpoint, λ = μ at u = ½
        assert float(sigmas[4]) == 1
    with pytest.raises(InputError, match=r"sigma_min 9\.0 is not below"):
        LaplaceSchedulerNode().apply_scheduler(model(), 0.0, 0.5, 9, sigma_min=9.0, sigma_max=8.0)


@pytest.mark.parametrize("node", [LaplaceSchedulerNode, NAINativeSchedulerNode], ids=["laplace", "native"])
def test_schedulers_refuse_a_model_without_timesteps(node: Any) -> None:
    flow = model(stub.ModelSamplingDiscreteFlow())
    declared = node.INPUT_TYPES()["required"]
    defaults = {name: options[0]["default"] for name, (_, *options) in declared.items() if options}
    with pytest.raises(InputError, match="ModelSamplingDiscreteFlow, which has no schedule of timesteps"):
        node().apply_scheduler(model=flow, **defaults)
