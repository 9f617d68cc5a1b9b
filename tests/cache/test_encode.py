"""Encoding with loader processes: what they leave undone is an error, not a wait without end."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from refimpl.cache import encode
from refimpl.cache.encode import FittingEncoder, encode_units
from refimpl.cache.plan import Unit, pictures_of
from refimpl.errors import LostProcess
from refimpl.latents.vae import VAE
from refimpl.run.stage import read_stage
from tests.train import runs


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whether a process is stopped")
def test_a_stopped_loader_process_is_named_and_ended(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, look = tmp_path / "process", encode.stamp

    def stop(source: object) -> tuple[int, int]:
        if os.getpid() != parent:
            note.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return look(source)  # pyright: ignore[reportArgumentType]

    parent = os.getpid()
    monkeypatch.setattr(encode, "stamp", stop)  # of the processes, which are forked
    config = runs.config(root, tmp_path)
    pictures = pictures_of([read_stage(config, config.all_stages()[0])])
    rows = np.arange(2)
    unit = Unit(pictures.buckets[int(pictures.bucket_of[0])], rows, np.zeros(2, np.int64))
    encoder = FittingEncoder(VAE(config.vae), torch.device("cpu"), "float32", 0, 2**20)
    with pytest.raises(
        LostProcess,
        match=r"no batch from the 1 loader processes for 3 s: process \d+ is stopped\..*refimpl cache",
    ) as error:
        list(encode_units([unit], pictures, encoder, False, 0, "pillow", workers=1, timeout=3.0))
    assert f"process {note.read_text()} is stopped" in str(error.value)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
