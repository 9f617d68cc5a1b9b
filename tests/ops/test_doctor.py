"""The doctor: versions, what was built, and a verdict on every operation in 2 seconds."""

import time

import pytest
import torch

from refimpl.ops import KernelNotBuilt, Ops, doctor, load_ops


def test_every_operation_is_checked_in_two_seconds(device):
    started = time.process_time()
    results = doctor.check(device)
    assert time.process_time() - started < 2
    assert [name for name, _, _ in results] == list(Ops._fields)
    assert all(error <= doctor.LARGEST_ERROR for _, error, _ in results)


def test_the_report_names_versions_and_builds():
    lines, well = doctor.report()
    text = "\n".join(lines)
    assert well
    assert torch.__version__ in text
    assert "backend kernel: built against torch" in text
    assert text.count("ok") >= len(Ops._fields)


def test_a_wrong_operation_is_reported(monkeypatch):
    real = load_ops("kernel")
    wrong = real._replace(add_noise=lambda x0, eps, alpha, sigma: real.add_noise(x0, eps, sigma, alpha))
    monkeypatch.setattr(
        doctor, "load_ops", lambda backend: wrong if backend == "kernel" else load_ops(backend)
    )
    lines, well = doctor.report()
    assert not well
    assert [line for line in lines if "WRONG" in line and "add_noise" in line]


@pytest.mark.parametrize("off_by", [-1e-3, 1e-3])
def test_results_that_are_too_low_or_too_high_everywhere_are_reported(off_by, monkeypatch):
    real = load_ops("kernel")
    wrong = real._replace(v_loss=lambda *arguments: real.v_loss(*arguments) + off_by)
    monkeypatch.setattr(
        doctor, "load_ops", lambda backend: wrong if backend == "kernel" else load_ops(backend)
    )
    lines, well = doctor.report()
    assert not well
    assert [line.split()[1] for line in lines if "WRONG" in line] == ["v_loss"]


def test_without_the_extension_the_build_command_is_given(monkeypatch):
    def missing(backend):
        raise KernelNotBuilt("the backend 'kernel' is not built: run `pip install …`")

    monkeypatch.setattr(doctor, "load_ops", missing)
    assert "pip install" in doctor.describe()[-1]
