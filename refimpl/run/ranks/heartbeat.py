"""Every rank says once a second where it is, so that one which stops is missed and named.

The words go through the key-value store that the ranks have met at (torch.distributed.TCPStore: torchrun's agent
holds it, or rank 0 where there is no agent), not through a collective: a rank that waits in one can still read them.
"""

import contextlib
import datetime
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from refimpl.errors import LOST_PROCESS
from refimpl.run.ranks.restarts import restarts

Result = TypeVar("Result")
INTERVAL = 1.0  # s between two beats
SILENCE = 3.0  # s without a beat after which a rank counts as stopped
MORE_TIME = "raise train.step_timeout if a step may take so long"
ANSWER = 3.0  # s that the store has to answer


class Place(NamedTuple):
    """Where a rank is: the later one is the larger one."""

    step: int
    phase: int
    """0 when the step has begun, 1 when this rank has done all of its part in it."""
    takes_long: bool
    """Whether it does what may take long, as measuring, sampling and saving do."""


class Heartbeat:
    """What this rank says of itself, and what it has heard of the others.

    A thread ends this process with a message and exit code 69 when it stays in one place for longer than the limit
    given to `at`, unless another rank, which this one waits for, does what may take long.
    """

    def __init__(self, rank: int, size: int, store: Store, holder: str = "rank 0"):
        """Begins to say where this rank is.

        store   reached by all ranks, through a connection that nothing else uses
        holder  the process that holds it, for messages
        """
        self._rank, self._size, self._store, self._holder = rank, size, store, holder
        self._beats, self._limit, self._since = 0, 0.0, time.monotonic()
        self._place = Place(0, 0, True)
        self._heard: dict[int, tuple[int, float]] = {}  # rank → its last beat, and when it was first seen
        self._ended = threading.Event()
        self._say()
        threading.Thread(target=self._watch, daemon=True, name="heartbeat").start()

    def at(self, step: int, phase: int, limit: float = 0.0) -> None:
        """Says that this rank has come to a place, from which the time is counted anew.

        step, phase  as in `Place`
        limit        seconds that it may take to the next place; 0 for no limit, which is said to the others too
        """
        self._place, self._limit, self._since = Place(step, phase, not limit), limit, time.monotonic()
        self._heard = {}
        self._say()

    def lost(self) -> str:
        """That ranks have stopped, and where they were last; empty when none has. Takes `SILENCE` seconds."""
        before = self._read()
        time.sleep(SILENCE)
        after = self._read()
        if before is None or after is None:
            return f"{self._holder} does not answer"
        return _stopped(
            {
                rank: place
                for rank, (beats, place) in after.items()
                if rank in before and before[rank][0] == beats
            }
        )

    def end(self) -> None:
        """Says nothing more, and ends this process no more."""
        self._ended.set()

    def _say(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store has gone; the others' silence says so
            self._store.set(str(self._rank), json.dumps([self._beats, *self._place]))

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._beats += 1
            self._say()
            limit, place = self._limit, self._place
            if not limit or time.monotonic() - self._since <= limit:
                continue
            why = self._judged(limit, place)
            if why and place == self._place and not self._ended.is_set():
                end_at_once(f"rank {self._rank}: step {place.step} has taken more than {limit:g} s: {why}")

    def _judged(self, limit: float, own: Place) -> str:
        """Why this rank waits in vain; empty where it does not, or where that can't be told yet."""
        known = self._heard  # which `at` may replace while this reads
        heard, now = self._read(), time.monotonic()
        if heard is None:
            return f"{self._holder} does not answer"
        for rank, (beats, _) in heard.items():
            if known.get(rank, (-1, 0.0))[0] != beats:
                known[rank] = beats, now
        silent = {
            rank: place
            for rank, (_, place) in heard.items()
            if now - known[rank][1] > (limit if place.takes_long else SILENCE)
        }
        if silent:
            return _stopped(silent)
        places = {**{rank: place for rank, (_, place) in heard.items()}, self._rank: own}
        if any(place.takes_long for place in places.values()) or now - self._since < limit + SILENCE:
            return ""
        last = min(place[:2] for place in places.values())
        behind = {rank: place for rank, place in places.items() if place[:2] == last}
        if len(behind) == self._size:
            return f"all ranks are alive and wait for one another; {MORE_TIME}"
        return f"{_named(behind)} has not come further, but is alive; {MORE_TIME}"

    def _read(self) -> dict[int, tuple[int, Place]] | None:
        """What the other ranks have last said; None when the store does not answer."""

        def read() -> dict[int, tuple[int, Place]]:
            others = [rank for rank in range(self._size) if rank != self._rank]
            present = [rank for rank in others if self._store.check([str(rank)])]
            said = [json.loads(text) for text in self._store.multi_get([str(rank) for rank in present])]
            return {rank: (beats, Place(*place)) for rank, (beats, *place) in zip(present, said, strict=True)}

        return within(ANSWER, read)


def _stopped(places: Mapping[int, Place]) -> str:
    return f"{_named(places)} {'has' if len(places) == 1 else 'have'} stopped" if places else ""


def _named(places: Mapping[int, Place]) -> str:
    """The ranks, each with the step that it was last heard of in."""
    return " and ".join(
        f"rank {rank} (last heard of {'after' if place.phase else 'in'} step {place.step})"
        if place.step
        else f"rank {rank} (before its first step)"
        for rank, place in sorted(places.items())
    )


def within(seconds: float, action: Callable[[], Result]) -> Result | None:
    """The action's result; None when it fails or takes longer. A store that was stopped would never answer."""
    box: list[Any] = []

    def act() -> None:
        with contextlib.suppress(RuntimeError):
            box.append(action())

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    return box[0] if box else None


def end_at_once(message: str, code: int = LOST_PROCESS) -> None:
    """Ends this process from any thread, whatever the others wait for, after one line on stderr."""
    os.write(2, f"\nerror: {message}\n".encode())
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


def start_heartbeat(rank: int, size: int) -> Heartbeat | None:
    """A heartbeat through the store that torchrun's environment names; None where it names none."""
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        return None
    store = job_store()
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    own = PrefixStore(f"refimpl/heartbeat/{restarts()}", store)
    return Heartbeat(rank, size, own, "torchrun's agent on the first machine" if by_agent else "rank 0")


def meeting_place(timeout: datetime.timedelta) -> Store | None:
    """Where these ranks, and no ranks before them, exchange their addresses; None where torch knows by itself.

    Under torchrun they meet in the agent's store, which outlives them: torch 2.13 gives the ranks after a restart the
    same store without a name of their own in it, and one that reads there where its peer used to be waits for it for
    as long as the group's time-out.
    timeout  that a rank waits for the others
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return PrefixStore(f"refimpl/ranks/{restarts()}", job_store(timeout))


def job_store(timeout: datetime.timedelta = datetime.timedelta(seconds=60)) -> TCPStore:
    """A connection of its own to the store that the ranks of this job have met at.

    timeout  of reading a key that is not there yet
    """
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timeout,
    )
