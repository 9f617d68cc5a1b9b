"""scheduler_config.json: what the UNet predicts, and on which schedule, in diffusers' fields.

Models other than eps are written with EulerDiscreteScheduler and spacing "linspace": that is this program's default,
`euler` on the `native` grid (N §2.3), for any number of steps. On the schedule that ends in pure noise, diffusers
sets alpha² at t = 999 to 2⁻²⁴ instead of 0: it starts at sigma_edm 4096, with 1/4096 of the noise in its first
estimate. Its DDIMScheduler takes that step exactly, but matches our grid ("trailing") only if the number of steps
divides 1000.
"""

from collections.abc import Mapping
from typing import Any

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Prediction
from refimpl.interop.diffusers_folder.configs import WRITER_VERSION
from refimpl.interop.diffusers_folder.fields import named

KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SDXL_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
"""the schedule before any rescaling (S §2.5: 1000 discrete steps, with Stable Diffusion's betas; N §2.2); diffusers
rescales it itself if told to"""
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
    return {
        **_class("EulerDiscreteScheduler"),
        **kind,
        **SDXL_BETAS,
        "rescale_betas_zero_snr": prediction.zero_terminal_snr,
        # an eps model as SDXL was published: it has never seen the schedule's last step for what it is
        "timestep_spacing": "leading" if prediction.kind == "eps" else "linspace",
        "steps_offset": 1,
        "interpolation_type": "linear",
        "use_karras_sigmas": False,
    }


def _class(name: str) -> dict[str, str]:
    return {"_class_name": name, "_diffusers_version": WRITER_VERSION}


def prediction_from_table(table: Mapping[str, Any], source: str) -> Prediction:
    """The prediction that a scheduler_config.json describes, with the fields that say so as its reason.

    source  the file, for messages
    Raises InputError for a schedule other than SDXL's, an unknown prediction type, or eps with zero terminal SNR.
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
                f"network's input in a way this project does not; it supports v_prediction with 1. {OVERRIDE}"
            )
        sigmas = {name: _sigma(table, name, source) for name in ("sigma_min", "sigma_max")}
        reason = f"{reason}, {scheduler}"
        return named(source, Prediction, kind=kinds[said], zero_terminal_snr=False, reason=reason, **sigmas)
    for name, value in SDXL_BETAS.items():
        found = table.get(name, value)
        if found != value:
            raise InputError(
                f"{source}: {name} is {found!r:.80}; in SDXL's schedule it is {value!r}; {OVERRIDE}"
            )
    zero_snr = table.get("rescale_betas_zero_snr", False)
    if zero_snr not in (True, False, None):
        raise InputError(
            f"{source}: rescale_betas_zero_snr is {zero_snr!r:.80}, not true or false; {OVERRIDE}"
        )
    if zero_snr:
        reason += ", rescale_betas_zero_snr"
    return named(source, Prediction, kind=kinds[said], zero_terminal_snr=bool(zero_snr), reason=reason)


def _sigma(table: Mapping[str, Any], name: str, source: str) -> float | None:
    value = table.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{source}: {name} is {value!r:.80}, not a number; {OVERRIDE}")
    return None if value is None else float(value)


def lines_for_single_file(prediction: Prediction) -> list[str]:
    """Python that gives a pipeline of diffusers' `from_single_file` a prediction's scheduler; empty if it has it.

    That loader takes its scheduler from SDXL's published settings, eps on the plain schedule, whatever the file says.
    """
    published, table = scheduler_table(Prediction("eps", False, "")), scheduler_table(prediction)
    changed = {name: value for name, value in table.items() if published.get(name) != value}
    kind = table["_class_name"]
    given = ", ".join(f"{name}={value!r}" for name, value in changed.items() if not name.startswith("_"))
    if not given:
        return []
    return [
        f"from diffusers import {kind}",
        f"pipe.scheduler = {kind}.from_config(pipe.scheduler.config, {given})",
    ]
