"""Reading and writing what a file says about its prediction type (N §2.1, §2.2; the markers of ComfyUI and A1111).

Sources: the empty tensors `v_pred` and `ztsnr`; the numbers `edm_vpred.sigma_max` and `edm_vpred.sigma_min` (CosXL);
the metadata `modelspec.prediction_type`, `modelspec.predict_key` (ComfyUI's) and `refimpl.zero_terminal_snr` (this
program's); a file of the same name ending in .yaml, of which the keys `parameterization`, `zero_terminal_snr` and the
`target` that names the denoiser's scaling are read, at any depth, in block or in flow style. v-prediction and zero
terminal SNR are independent facts: the schedule of a v-prediction model need not end in pure noise.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.checkpoint import EPS_BY_DEFAULT, Prediction

V_PRED, ZTSNR = "v_pred", "ztsnr"
EDM_MAX, EDM_MIN = "edm_vpred.sigma_max", "edm_vpred.sigma_min"
MARKERS = (V_PRED, ZTSNR, EDM_MAX, EDM_MIN)
PLAYGROUND = ("edm_mean", "edm_std")

MODELSPEC = "modelspec.prediction_type"
PREDICT_KEY = "modelspec.predict_key"  # ComfyUI's name for it in the files it writes
OUR_ZTSNR = "refimpl.zero_terminal_snr"
NAMES = {"eps": "epsilon", "v": "v", "x0": "sample"}  # as modelspec spells them
SPELLINGS = {
    "eps": "eps", "epsilon": "eps",
    "v": "v", "v_prediction": "v", "v-prediction": "v", "v_pred": "v", "velocity": "v",
    "x0": "x0", "sample": "x0",
}  # fmt: skip
SCALINGS = {"VScaling": "v", "EpsScaling": "eps"}

LARGEST_YAML = 100_000  # bytes; the published ones have 3,000
OVERRIDE = (
    "say what it is: `refimpl convert` with --prediction eps, v or x0 (and --ztsnr) writes a file that says so, and "
    "in Python there is the argument `prediction`"
)


class Said(NamedTuple):
    """One statement: where it was found, and what it says about each fact (None: nothing)."""

    where: str
    kind: str | None = None
    zero_terminal_snr: bool | None = None


def detect(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> Prediction:
    """What a single file's UNet predicts, and how that is known.

    tensors   the file's tensors, by key
    path      the file's path; a .yaml file of the same name is read if there is one
    Raises InputError, saying what to do, when two statements contradict each other, `ztsnr` is present without
    `v_pred`, or a statement is not understood.
    """
    found = [key for key in PLAYGROUND if key in tensors]
    if found:
        raise InputError(
            f"{path}: {found[0]} marks an EDM model (Playground v2.5), whose network is conditioned and scaled in a "
            f"way this project does not support; to read its tensors all the same, {OVERRIDE}"
        )
    statements = [*_markers(tensors), *_metadata(metadata, path), *_sidecar(path.with_suffix(".yaml"))]
    _check_agreement(statements, path)
    if V_PRED in tensors and (EDM_MAX in tensors or EDM_MIN in tensors):
        raise InputError(f"{path} contradicts itself: marker v_pred against marker edm_vpred; {OVERRIDE}")
    kind = next((said.kind for said in statements if said.kind), None)
    zero_snr = any(said.zero_terminal_snr for said in statements)
    reason = ", ".join(said.where for said in statements if said.kind or said.zero_terminal_snr)
    if ZTSNR in tensors and V_PRED not in tensors:
        raise InputError(
            f"{path} has the marker ztsnr without v_pred: other tools take it for an eps model, and eps carries no "
            f"information about the image at zero SNR; {OVERRIDE}"
        )
    if zero_snr and kind not in ("v", "x0"):
        raise InputError(f"{path} is said to end in zero SNR ({reason}), but not to predict v; {OVERRIDE}")
    sigma_min, sigma_max = (_number(tensors, key, path) for key in (EDM_MIN, EDM_MAX))
    if sigma_min and sigma_max and sigma_min >= sigma_max:
        raise InputError(f"{path}: {EDM_MIN} {sigma_min} is not below {EDM_MAX} {sigma_max}; {OVERRIDE}")
    return Prediction(kind, zero_snr, reason, sigma_min, sigma_max) if kind else EPS_BY_DEFAULT


def _markers(tensors: Mapping[str, Tensor]) -> list[Said]:
    said = [Said(f"marker {key}", "v") for key in (V_PRED, EDM_MAX, EDM_MIN) if key in tensors]
    return said + [Said("marker ztsnr", None, True)] * (ZTSNR in tensors)


def _metadata(metadata: Mapping[str, str], path: Path) -> list[Said]:
    said = []
    for key in (MODELSPEC, PREDICT_KEY):
        text = metadata.get(key, "").strip()
        if text and text.lower() not in SPELLINGS:
            raise InputError(f"{path}: {key} is {text!r:.80}, not epsilon, v or sample; {OVERRIDE}")
        if text:
            said.append(Said(f"{key} {text}", SPELLINGS[text.lower()]))
    if OUR_ZTSNR in metadata:
        said.append(_truth(f"metadata {OUR_ZTSNR}", metadata[OUR_ZTSNR], path))
    return said


def _sidecar(path: Path) -> list[Said]:
    if not path.is_file():
        return []
    said = []
    for key, value in _settings(_read_yaml(path)):
        # YAML 1.1 makes a truth value of true, and numbers and nothing at all of other bare words.
        # What holds others is not spelled out: with anchors, a kilobyte of it may be a billion words.
        is_plain = not isinstance(value, dict | list)
        text = (
            (str(value).lower() if isinstance(value, bool) else str(value)) if is_plain else "a table or list"
        )
        scaling = re.search(r"denoiser_scaling\.(\w+)$", text) if key == "target" else None
        if key == "parameterization":
            if text.lower() not in SPELLINGS:
                raise InputError(f"{path}: parameterization {text!r:.80} is not eps, v or x0; {OVERRIDE}")
            said.append(Said(f"{path.name} parameterization {text}", SPELLINGS[text.lower()]))
        elif key == "zero_terminal_snr":
            said.append(_truth(f"{path.name} zero_terminal_snr", text, path))
        elif scaling and scaling[1] in SCALINGS:
            said.append(Said(f"{path.name} {scaling[1]}", SCALINGS[scaling[1]]))
    return said


def _read_yaml(path: Path) -> object:
    if path.stat().st_size > LARGEST_YAML:
        raise InputError(
            f"{path} is larger than {LARGEST_YAML} bytes, so it is not a model's settings; move it away"
        )
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} beside the checkpoint is not YAML: {reason:.300}; move it away") from error
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, or no date such as 2000-13-01
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"{path} beside the checkpoint cannot be read: {reason}; move it away") from error


def _settings(document: object) -> Iterator[tuple[str, object]]:
    """Every setting of a document, at any depth, in the file's order; one that an anchor repeats is given once."""
    waiting, met = [document], set()
    while waiting:
        table = waiting.pop()
        if id(table) in met or not isinstance(table, dict | list):
            continue
        met.add(id(table))
        children = table.values() if isinstance(table, dict) else table
        if isinstance(table, dict):
            yield from ((str(key), value) for key, value in table.items())
        waiting += reversed(list(children))


def _truth(where: str, text: str, path: Path) -> Said:
    if text.lower() not in ("true", "false"):
        raise InputError(f"{path}: {where} is {text!r:.80}, not true or false; {OVERRIDE}")
    return Said(f"{where} {text.lower()}", None, text.lower() == "true")


def _check_agreement(statements: list[Said], path: Path) -> None:
    for fact in ("kind", "zero_terminal_snr"):
        heard = [said for said in statements if getattr(said, fact) is not None]
        for said in heard[1:]:
            if getattr(said, fact) != getattr(heard[0], fact):
                raise InputError(
                    f"{path} contradicts itself: {heard[0].where} against {said.where}; {OVERRIDE}"
                )


def _number(tensors: Mapping[str, Tensor], key: str, path: Path) -> float | None:
    if key not in tensors:
        return None
    if tensors[key].numel() != 1:
        raise InputError(f"{path}: {key} must be one number, not {list(tensors[key].shape)}; {OVERRIDE}")
    sigma = float(tensors[key])
    if not (sigma > 0 and math.isfinite(sigma)):
        raise InputError(f"{path}: {key} is {sigma}, and must be positive and finite; {OVERRIDE}")
    return sigma


def marker_tensors(prediction: Prediction, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The top-level tensors that declare a prediction type to ComfyUI and A1111.

    kept     markers that the file came with: one that says the same is reused, so that no bit changes
    returns  `v_pred` and, independently, `ztsnr`; or `edm_vpred.*`; nothing for eps and x0
    """
    tensors: dict[str, Tensor] = {}
    if prediction.sigma_max is not None or prediction.sigma_min is not None:
        for key, sigma in ((EDM_MAX, prediction.sigma_max), (EDM_MIN, prediction.sigma_min)):
            if sigma is not None:
                same = key in kept and kept[key].numel() == 1 and float(kept[key]) == sigma
                tensors[key] = kept[key] if same else torch.tensor(sigma)
    elif prediction.kind == "v":
        tensors[V_PRED] = kept.get(V_PRED, torch.empty(0))
        if prediction.zero_terminal_snr:
            tensors[ZTSNR] = kept.get(ZTSNR, torch.empty(0))
    return tensors


def prediction_metadata(prediction: Prediction) -> dict[str, str]:
    """The metadata that declare a prediction type."""
    zero_snr = str(prediction.zero_terminal_snr).lower()
    return {MODELSPEC: NAMES[prediction.kind], OUR_ZTSNR: zero_snr}
