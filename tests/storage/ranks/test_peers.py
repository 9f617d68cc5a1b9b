"""What one rank raises, the others raise too."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from refimpl.data.images.decode import BadImage
from refimpl.errors import InputError
from refimpl.storage.ranks.peers import Peers

ERRORS = {
    "an image": (BadImage("a.png", "is cut off", "damaged"), BadImage, "a.png: is cut off"),
    "input": (InputError("too small"), InputError, "too small"),
    "the disk": (OSError(28, "No space left", "x"), OSError, "[Errno 28] No space left: 'x'"),
    "another": (ZeroDivisionError("by zero"), RuntimeError, "rank 0: ZeroDivisionError: by zero"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_reaches_the_other_ranks_as_what_it_is(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raised, kind, message = ERRORS[error]
    sent: list[bytes] = []
    first, second = Peers(0, 2), Peers(1, 2)

    def act() -> None:
        raise raised from ValueError("whose traceback stays here")

    def told(box: list[Any], value: Any, **_: Any) -> None:
        sent.append(pickle.dumps(value))
        box[0] = pickle.loads(sent[-1])

    def send(box: list[Any], **_: Any) -> None:
        sent.append(pickle.dumps(box))

    def receive(box: list[Any], **_: Any) -> None:
        box[:] = pickle.loads(sent[-1])

    def other_rank(ask: Callable[[], Any]) -> None:
        with pytest.raises(kind) as found:
            ask()
        assert (type(found.value), str(found.value)) == (kind, message)
        if isinstance(raised, BadImage):
            assert (found.value.path, found.value.reason) == (Path("a.png"), "is cut off")

    monkeypatch.setattr(dist, "broadcast_object_list", send)
    with pytest.raises(type(raised)):
        first.on_first(act)
    monkeypatch.setattr(dist, "broadcast_object_list", receive)
    other_rank(lambda: second.on_first(act))
    monkeypatch.setattr(dist, "all_gather_object", told)
    with pytest.raises(type(raised)):
        first.together(act)

    def first_says(box: list[Any], value: Any, **_: Any) -> None:
        box[:] = [pickle.loads(sent[-1]), value]

    monkeypatch.setattr(dist, "all_gather_object", first_says)
    other_rank(lambda: second.together(lambda: None))
