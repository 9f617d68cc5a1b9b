"""Work that goes on beside its caller, one job at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """A thread for jobs. What a job raises is raised by the next `start` or `wait`, in the caller's thread."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begins a job once the one before has ended. Raises what that one raised, and then begins none."""
        self.wait()
        self._job = self._pool.submit(job)

    def wait(self) -> None:
        """Waits for the job that is going on, if any. Raises what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()
