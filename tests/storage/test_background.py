"""Work beside its caller: one job at a time, and no error lost."""

import threading

import pytest

from refimpl.storage.background import Background


def test_a_job_runs_beside_its_caller() -> None:
    background, go, done = Background("test"), threading.Event(), []
    background.start(lambda: (go.wait(), done.append(threading.current_thread()))[1])
    assert done == []
    go.set()
    background.wait()
    assert done != [threading.current_thread()]
    assert len(done) == 1
    background.wait()


def test_jobs_do_not_overlap() -> None:
    background, running, most = Background("test"), [], []

    def job() -> None:
        running.append(1)
        most.append(len(running))
        running.pop()

    for _ in range(5):
        background.start(job)
    background.wait()
    assert most == [1] * 5


def test_what_a_job_raises_is_raised_once_by_the_next_call() -> None:
    background = Background("test")

    def failing() -> None:
        raise ValueError("full")

    for next_call in (background.wait, lambda: background.start(lambda: None)):
        background.start(failing)
        with pytest.raises(ValueError, match="full"):
            next_call()
        background.wait()
