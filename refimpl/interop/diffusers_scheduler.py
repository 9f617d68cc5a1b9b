"""scheduler_config.json: what the UNet predicts on which schedule, in diffusers' fields (spec 7.2).

On the schedule that ends in pure noise DDIMScheduler is written: of diffusers' samplers it takes the step from
t = 999 as it is (alpha exactly 0), in variance-preserving form. EulerDiscreteScheduler and the multistep ones set
alpha² to 2⁻²⁴ there: they start at sigma_edm 4096, with a state that float16 rounds to whole numbers.
"""

from collections.abc import Mapping
from typing import Any

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.diffusers_configs import WRITER_VERSION

KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SDXL_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
"""spec 1.1, before any rescaling: diffusers rescales by itself when it is told to"""
EDM = "EDM"
OVERRIDE = "give the prediction type by hand to read its tensors all the same"


def scheduler_table(prediction: Prediction) -> dict[str, Any]:
    """scheduler_config.json for a prediction."""
    kind = {"prediction_type": KINDS[prediction.kind]}
    if prediction.sigma_min is not None or prediction.sigma_max is not None:
        sigmas = {"sigma_min": prediction.sigma_min, "sigma_max": prediction.sigma_max}
        given = {name: sigma for name, sigma in sigmas.items() if sigma is not None}
        return {
            **_class("EDMEulerScheduler"),
            **kind,
            **given,
            "sigma_data": 1.0,
            "sigma_schedule": "exponential",
        }
    shared = {**SDXL_BETAS, **kind, "rescale_betas_zero_snr": prediction.zero_terminal_snr, "steps_offset": 1}
    if prediction.zero_terminal_snr:
        exact = {"clip_sample": False, "set_alpha_to_one": True, "thresholding": False}
        return {**_class("DDIMScheduler"), **shared, **exact, "timestep_spacing": "trailing"}
    # as SDXL was published, but that what is no eps model starts at the schedule's last step
    spacing = "leading" if prediction.kind == "eps" else "trailing"
    usual = {"interpolation_type": "linear", "use_karras_sigmas": False}
    return {**_class("EulerDiscreteScheduler"), **shared, **usual, "timestep_spacing": spacing}


def _class(name: str) -> dict[str, str]:
    return {"_class_name": name, "_diffusers_version": WRITER_VERSION}


def prediction_from_table(table: Mapping[str, Any], source: str) -> Prediction:
    """The prediction that a scheduler_config.json tells, and by which of its fields.

    source  the file, for messages
    Raises InputError for another schedule than SDXL's, an unknown prediction type, or eps with zero terminal SNR.
    """
    scheduler, said = str(table.get("_class_name", "")), table.get("prediction_type", "epsilon")
    kinds = {theirs: ours for ours, theirs in KINDS.items()}
    if "FlowMatch" in scheduler or not isinstance(said, str) or said not in kinds:
        raise InputError(
            f"{source}: {scheduler or 'a scheduler'} with prediction_type {said!r:.80} is not SDXL's; known are "
            f"{', '.join(kinds)}; {OVERRIDE}"
        )
    reason = f"scheduler_config.json: prediction_type {said}"
    if scheduler.startswith(EDM):
        sigma_data = table.get("sigma_data", 0.5)
        if said != "v_prediction" or sigma_data != 1:
            raise InputError(
                f"{source}: {scheduler} with prediction_type {said} and sigma_data {sigma_data!r:.80} scales the "
                f"network's input as this project does not; it knows v_prediction with 1. {OVERRIDE}"
            )
        sigmas = [_sigma(table, name, source) for name in ("sigma_min", "sigma_max")]
        return Prediction(kinds[said], False, f"{reason}, {scheduler}", *sigmas)
    for name, value in SDXL_BETAS.items():
        found = table.get(name, value)
        if found != value:
            raise InputError(f"{source}: {name} is {found!r:.80}, in SDXL's schedule {value!r}; {OVERRIDE}")
    zero_snr = table.get("rescale_betas_zero_snr", False)
    if zero_snr not in (True, False, None):
        raise InputError(
            f"{source}: rescale_betas_zero_snr is {zero_snr!r:.80}, not true or false; {OVERRIDE}"
        )
    if zero_snr:
        reason += ", rescale_betas_zero_snr"
    try:
        return Prediction(kinds[said], bool(zero_snr), reason)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _sigma(table: Mapping[str, Any], name: str, source: str) -> float | None:
    value = table.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{source}: {name} is {value!r:.80}, not a number; {OVERRIDE}")
    return None if value is None else float(value)
