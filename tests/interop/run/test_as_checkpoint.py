"""A run as a checkpoint for other tools: the same bits as the model's, with one tensor in memory at a time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from refimpl.commands.files.export import export_command
from refimpl.errors import InputError
from refimpl.interop import single_file
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.run import as_checkpoint as run_checkpoint
from refimpl.interop.run.base import base_digest, refer_to_base
from refimpl.interop.run.checkpoints import step_folder
from refimpl.interop.run.run_folder import CONFIG, load_model, save_components, write_config
from refimpl.interop.run.trained_parts import add_adapters, network_state
from refimpl.model.unet import UNet
from refimpl.storage import committed
from refimpl.tables import to_table
from refimpl.text.tower_names import tower_parameters
from tests.interop.checkpoints import private_bytes
from tests.train import runs
from tests.train.test_lora_training import with_text

Run = Callable[..., Path]

WIDE = {
    "channels": 128,
    "groups": 32,
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 1, 2],
    "head_dim": 64,
}
"""A UNet of 260 MB in float32: large beside what a process needs anyhow, small enough to write in a second."""


@pytest.mark.parametrize("weights", ["ema", "unet"])
def test_adapters_are_merged_to_the_models_bits(weights: str, run: Run, trained: Path) -> None:
    adapted = run(**with_text(trained))
    found, beside = run_checkpoint.load(adapted, weights)
    model, _, _ = load_model(adapted, weights)
    assert model.encoder_l is not None
    networks = (
        (found.unet, model.unet.state_dict()),
        (found.vae, model.vae.state_dict()),
        (found.text_l, dict(tower_parameters(model.encoder_l))),
        (found.text_g, dict(tower_parameters(model.encoder_g))),
    )
    for ours, theirs in networks:
        assert ours is not None
        assert not runs.differing({"x": dict(ours)}, {"x": theirs})
    assert beside.folder == step_folder(adapted, 4)
    assert found.prediction.reason == f"the run's configuration, step 4, weights {weights}"


def test_a_checkpoint_of_another_network_is_refused(run: Run, trained: Path) -> None:
    adapted = run(**with_text(trained))
    folder = step_folder(adapted, 4)
    tensors, documents = committed.read(folder)
    tensors["ema"].pop(next(key for key in tensors["ema"] if key.endswith(".alpha")))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    committed.write(folder, tensors, documents)
    with pytest.raises(
        InputError, match=r"ema\.safetensors does not fit this model; 1 of its tensors differ"
    ):
        run_checkpoint.load(adapted)


@contextmanager
def peak_of_private_memory() -> Iterator[list[int]]:
    """A list that ends with the most memory, in bytes and above that at the beginning, seen while it is open."""
    began, peak, is_over = private_bytes(), [0], threading.Event()

    def look() -> None:
        while not is_over.is_set():
            peak[0] = max(peak[0], private_bytes() - began)
            time.sleep(0.001)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def wide_run(folder: Path, trained: Path, start: Path, is_lora: bool) -> Path:
    """A finished run of a wide UNet, or of adapters on it, written without training."""
    lora = {"rank": 2, "targets": ["*.transformer_blocks.*"]} if is_lora else {}
    config = runs.config(folder, folder / "run", unet=WIDE, lora=lora, train={"init_from": str(start)})
    torch.manual_seed(0)
    unet, run = UNet(config.unet), folder / "run"
    run.mkdir(parents=True)
    model = load_model(trained)[0]
    save_components(run, model)
    write_config(run, to_table(config))
    state: dict[str, object] = {"step": 1}
    if is_lora:
        found = run_checkpoint.load(trained)[0]
        single_file.save(Checkpoint(unet=unet.state_dict(), metadata=found.metadata), start)
        refer_to_base(run, start, unet)
        state["base"] = base_digest(run)
        add_adapters("unet", unet, config.lora)
    ema = network_state(unet)
    committed.write(
        step_folder(run, 1), {"unet": ema, "ema": ema}, {"config": to_table(config), "state": state}
    )
    assert (run / CONFIG).is_file()
    return run


@pytest.mark.parametrize("is_lora", [False, True])
def test_exporting_holds_a_small_part_of_the_model(is_lora: bool, trained: Path, tmp_path: Path) -> None:
    run = wide_run(tmp_path, trained, tmp_path / "start.safetensors", is_lora)
    size = sum(path.stat().st_size for path in step_folder(run, 1).glob("ema.safetensors"))
    size = (tmp_path / "start.safetensors").stat().st_size if is_lora else size
    assert size > 200e6
    with peak_of_private_memory() as peak:
        export_command([str(run), str(tmp_path / "out.safetensors"), "--dtype", "fp16"])
    assert peak[0] < size / 4
    written = single_file.load(tmp_path / "out.safetensors")
    assert written.unet is not None
    assert len(written.unet) > 300
