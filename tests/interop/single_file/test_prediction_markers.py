"""What a file says it predicts: every source, every contradiction, and what is written."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given

from refimpl.errors import InputError
from refimpl.interop.checkpoint import EPS_BY_DEFAULT, Prediction
from refimpl.interop.single_file.prediction_markers import (
    LARGEST_YAML,
    detect,
    marker_tensors,
    prediction_metadata,
)
from tests.conforming import conforms
from tests.strategies import predictions

EMPTY = torch.empty(0)
V, BOTH = {"v_pred": EMPTY}, {"v_pred": EMPTY, "ztsnr": EMPTY}
EDM = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
NOWHERE = Path("nowhere/model.safetensors")
V_YAML = 'model:\n  params:\n    parameterization: "v"  # SD 2 style\n'
SGM_YAML = """model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    denoiser_config:
      params:
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.{scaling}
"""


@pytest.mark.parametrize(
    ("tensors", "metadata", "kind", "zero_snr", "reason"),
    [
        (EDM, {}, "v", False, "marker edm_vpred.sigma_max, marker edm_vpred.sigma_min"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "eps", False, "modelspec.prediction_type epsilon"),
        ({}, {"modelspec.prediction_type": "v"}, "v", False, "modelspec.prediction_type v"),
        ({}, {"modelspec.prediction_type": " V_prediction"}, "v", False, "modelspec.prediction_type V_prediction"),
        ({}, {"modelspec.prediction_type": "sample"}, "x0", False, "modelspec.prediction_type sample"),
        ({}, {"modelspec.prediction_type": ""}, "eps", False, "no marker: eps, as SDXL was published"),
        (V, {"modelspec.prediction_type": "v"}, "v", False, "marker v_pred, modelspec.prediction_type v"),
        ({}, {"modelspec.predict_key": "v"}, "v", False, "modelspec.predict_key v"),
        ({}, {"modelspec.predict_key": "epsilon"}, "eps", False, "modelspec.predict_key epsilon"),
    ],
)  # fmt: skip
def test_statements_are_understood(
    tensors: dict, metadata: dict, kind: str, zero_snr: bool, reason: str
) -> None:
    found = detect(tensors, metadata, NOWHERE)
    assert (found.kind, found.zero_terminal_snr, found.reason) == (kind, zero_snr, reason)


@pytest.mark.parametrize("check", ["both", "prediction_alone", "neither"])
def test_markers_are_read_as_every_tool_reads_them(check: str) -> None:
    conforms(f"markers.{check}")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "no marker: eps, as SDXL was published"),
        (V, "marker v_pred"),
        (BOTH, "marker v_pred, marker ztsnr"),
    ],
)
def test_markers_that_were_read_are_named(tensors: dict, reason: str) -> None:
    assert detect(tensors, {}, NOWHERE).reason == reason


def test_sigmas_are_read() -> None:
    found = detect(EDM, {}, NOWHERE)
    assert (found.sigma_max, found.sigma_min) == (120.0, float(torch.tensor(0.002)))


@pytest.mark.parametrize(
    ("text", "kind", "zero_snr"),
    [
        (V_YAML, "v", False),
        (SGM_YAML.format(scaling="VScaling"), "v", False),
        (SGM_YAML.format(scaling="EpsScaling"), "eps", False),
        (SGM_YAML.format(scaling="OtherScaling"), "eps", False),
        ("parameterization: eps", "eps", False),
        ("parameterization: 'v'\nzero_terminal_snr: true", "v", True),
        ("# parameterization: v\nother: [1, 2]\n", "eps", False),
        ("{model: {params: {parameterization: v, zero_terminal_snr: true}}}", "v", True),
        ('model: {"params": {"parameterization":"v"}}', "v", False),
        (
            "model:\n  params:\n    parameterization:\n      v\n    zero_terminal_snr:   # so\n      True",
            "v",
            True,
        ),
        (
            "model: {denoiser: {scaling_config: {target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling}}}",
            "v",
            False,
        ),
        ("text: |\n  parameterization: v\n", "eps", False),
        ("a: &x {parameterization: v}\nb: *x\nc: [*x, [*x]]", "v", False),
        ("", "eps", False),
    ],
)
def test_a_sidecar_is_read(text: str, kind: str, zero_snr: bool, tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(text)
    found = detect({}, {}, tmp_path / "model.safetensors")
    assert (found.kind, found.zero_terminal_snr) == (kind, zero_snr)
    assert ("model.yaml" in found.reason) == (found != EPS_BY_DEFAULT)


@pytest.mark.parametrize(
    ("tensors", "metadata", "yaml", "message"),
    [
        (V, {"modelspec.prediction_type": "epsilon"}, "", "marker v_pred against modelspec.prediction_type epsilon"),
        (EDM, {"modelspec.prediction_type": "sample"}, "", "marker edm_vpred.sigma_max against modelspec"),
        (V, {}, "parameterization: eps", "marker v_pred against model.yaml parameterization eps"),
        ({}, {"modelspec.prediction_type": "v"}, SGM_YAML.format(scaling="EpsScaling"), "v against model.yaml Eps"),
        (BOTH, {}, "zero_terminal_snr: false", "marker ztsnr against model.yaml zero_terminal_snr false"),
        (BOTH, {"refimpl.zero_terminal_snr": "false"}, "", "marker ztsnr against metadata refimpl.zero_terminal_snr"),
        (V | EDM, {}, "", "marker v_pred against marker edm_vpred"),
        ({"ztsnr": EMPTY}, {}, "", "has the marker ztsnr without v_pred"),
        ({"ztsnr": EMPTY}, {"modelspec.prediction_type": "v"}, "", "has the marker ztsnr without v_pred"),
        (EDM | {"ztsnr": EMPTY}, {}, "", "has the marker ztsnr without v_pred"),
        ({}, {}, "zero_terminal_snr: true", "said to end in zero SNR .*but not to predict v"),
        ({}, {}, "parameterization: eps\nzero_terminal_snr: true", "but not to predict v"),
        ({}, {"modelspec.prediction_type": "flow"}, "", "is 'flow', not epsilon, v or sample"),
        (V, {"modelspec.predict_key": "epsilon"}, "", "marker v_pred against modelspec.predict_key epsilon"),
        ({}, {}, "parameterization: mu", "'mu' is not eps, v or x0"),
        ({}, {}, "{a: {parameterization: v}, b: {parameterization: eps}}", "v against model.yaml param"),
        ({}, {}, "zero_terminal_snr: maybe", "'maybe', not true or false"),
        ({"edm_mean": EMPTY}, {}, "", "edm_mean marks an EDM model"),
        ({"edm_vpred.sigma_max": torch.ones(2)}, {}, "", r"must be one number, not \[2\]"),
        ({"edm_vpred.sigma_max": torch.zeros(1)}, {}, "", r"sigma_max is 0\.0, and must be positive and finite"),
        (EDM | {"edm_vpred.sigma_min": torch.tensor(120)}, {}, "", r"sigma_min 120\.0 is not below .*sigma_max 120"),
    ],
)  # fmt: skip
def test_contradictions_name_both_sides_and_the_way_out(
    tensors: dict, metadata: dict, yaml: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "model.yaml").write_text(yaml)
    with pytest.raises(InputError, match=message) as error:
        detect(tensors, metadata, tmp_path / "model.safetensors")
    assert str(tmp_path) in str(error.value)
    assert "--prediction" in str(error.value)


@pytest.mark.parametrize("sigma", [0.0, -1.0, torch.nan, torch.inf])
def test_impossible_sigmas_are_refused(sigma: float) -> None:
    with pytest.raises(InputError, match=r"sigma_max .* must be positive and finite"):
        detect({"edm_vpred.sigma_max": torch.tensor(sigma)}, {}, NOWHERE)


def test_unreadable_sidecars_are_refused(tmp_path: Path) -> None:
    yaml, path = tmp_path / "model.yaml", tmp_path / "model.safetensors"
    yaml.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"model\.yaml beside the checkpoint cannot be read"):
        detect({}, {}, path)
    yaml.write_bytes(b" " * (LARGEST_YAML + 1))
    with pytest.raises(
        InputError, match=r"model\.yaml is larger than 100000 bytes, so it is not a model's settings"
    ):
        detect({}, {}, path)
    for text, message in (
        ("{model: {params: ", r"model\.yaml beside the checkpoint is not YAML: while parsing a flow"),
        ("a: !!python/object/apply:os.system [exit]", "is not YAML: could not determine a constructor"),
        ("[" * 5000, "is nested too deep"),
        ("a: 2000-13-01", "cannot be read: month must be in"),
    ):
        yaml.write_text(text)
        with pytest.raises(InputError, match=message):
            detect({}, {}, path)
    yaml.unlink()
    yaml.mkdir()
    assert detect({}, {}, path) == EPS_BY_DEFAULT


def test_eps_at_zero_snr_and_crossed_sigmas_cannot_be_said() -> None:
    with pytest.raises(InputError, match="at SNR 0 eps says nothing"):
        Prediction("eps", True, "given")
    with pytest.raises(InputError, match="sigma_min 2 is not below sigma_max 1"):
        Prediction("v", False, "given", 2, 1)
    with pytest.raises(InputError, match="prediction 'w' is unknown"):
        Prediction("w", False, "given")


@given(predictions())
def test_what_is_written_is_read(prediction: Prediction) -> None:
    found = detect(marker_tensors(prediction, {}), prediction_metadata(prediction), NOWHERE)
    assert (found.kind, found.zero_terminal_snr) == (prediction.kind, prediction.zero_terminal_snr)
    for name in ("sigma_min", "sigma_max"):
        given_sigma, read_sigma = getattr(prediction, name), getattr(found, name)
        assert read_sigma == (None if given_sigma is None else float(torch.tensor(given_sigma)))


@pytest.mark.parametrize(
    ("prediction", "keys"),
    [
        (Prediction("eps", False, ""), set()),
        (Prediction("v", False, ""), {"v_pred"}),
        (Prediction("v", True, ""), {"v_pred", "ztsnr"}),
        (Prediction("x0", True, ""), set()),
        (Prediction("v", False, "", 0.002, 120.0), {"edm_vpred.sigma_max", "edm_vpred.sigma_min"}),
    ],
)
def test_two_facts_are_two_markers(prediction: Prediction, keys: set[str]) -> None:
    stale = {"v_pred": torch.ones(1), "ztsnr": torch.ones(2), "edm_vpred.sigma_max": torch.tensor(80.0)}
    tensors = marker_tensors(prediction, stale)
    assert tensors.keys() == keys
    assert tensors.get("v_pred", stale["v_pred"]) is stale["v_pred"]  # as the file had it
    assert "edm_vpred.sigma_max" not in keys or tensors["edm_vpred.sigma_max"] == 120


def test_a_sidecar_of_aliases_is_not_spelled_out(tmp_path: Path) -> None:
    """Five anchors, each of ten of the one before: written out they are a hundred thousand words, and here none."""
    lines = ["a: &a [word]"]
    lines += [f"{now}: &{now} [{', '.join([f'*{before}'] * 10)}]" for before, now in pairwise("abcdef")]
    (tmp_path / "model.yaml").write_text("\n".join([*lines, "target: *f", "parameterization: v"]))
    with tracked_peak() as peak:
        assert detect({}, {}, tmp_path / "model.safetensors").kind == "v"
    assert peak() < 3e5
    (tmp_path / "model.yaml").write_text("parameterization: [v]")
    with pytest.raises(InputError, match="'a table or list' is not eps, v or x0"):
        detect({}, {}, tmp_path / "model.safetensors")


@contextmanager
def tracked_peak() -> Iterator[Callable[[], int]]:
    """Within it, Python's memory is traced; afterwards the function says how many bytes there were at most."""
    found = [0]
    tracemalloc.start()
    try:
        yield lambda: found[0]
        found[0] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
