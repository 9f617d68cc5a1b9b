"""Finetuning the decoder: what changes, what must not, and resuming after a stop (N §4.4)."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from refimpl.autoencoder.decoder import finetune_decoder
from refimpl.autoencoder.decoder_config import DecoderConfig
from refimpl.autoencoder.decoder_measures import measure_decoder, without_jpeg_blocks
from refimpl.commands.train_decoder import train_decoder_command
from refimpl.data.index.data_set import Index, read_folder
from refimpl.errors import InputError
from refimpl.interop import diffusers_folder, single_file
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.network.architecture import Architecture, noted
from refimpl.latents.scale_shift import NOVELAI_ANIME
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.storage import safetensors_file
from refimpl.tables import from_table
from tests.tolerances import DECODER_LOSS, DECODER_STEP_SHARE
from tests.train import caches, runs
from tests.train.processes import run_ranks

CPU = runs.ALONE
VAE_CONFIG = from_table(VAEConfig, runs.VAE_TABLE, "test")


def settings(**changes: Any) -> DecoderConfig:
    base: dict[str, Any] = {
        "steps": 4,
        "batch_size": 4,
        "size": 32,
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
    }
    return DecoderConfig(**base | changes)


def fresh_vae() -> VAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VAE(VAE_CONFIG)


@pytest.fixture
def index(root: Path) -> Index:
    return read_folder(str(root / "train"))


def edges(x: torch.Tensor) -> list[torch.Tensor]:
    return [x[..., 1:] - x[..., :-1]]


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"perceptual_weight": 0.5},
        {"adversarial_weight": 0.1, "l1_weight": 0.0, "adversarial_start": 0},
        {"adversarial_weight": 0.1, "adversarial_start": 2, "precision": "bf16"},
    ],
)
def test_the_encoder_keeps_its_bits_and_the_decoder_learns(
    terms: dict[str, Any], index: Index, tmp_path: Path
) -> None:
    vae = fresh_vae()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    finetune_decoder(vae, index, settings(**terms), tmp_path, CPU, edges)
    assert torch.equal(state, torch.get_rng_state())
    for name, value in vae.state_dict().items():
        is_frozen = name.startswith(("encoder.", "quant_conv."))
        assert torch.equal(value, before[name]) == is_frozen, name
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_it_lowers_the_error(index: Index, tmp_path: Path) -> None:
    vae = fresh_vae()
    before = measure_decoder(vae, index, 32, CPU)
    vae = finetune_decoder(vae, index, settings(steps=60, learning_rate=3e-3, ema_decay=0.9), tmp_path, CPU)
    after = measure_decoder(vae, index, 32, CPU)
    assert after["psnr"] > before["psnr"] + 1
    assert after["ssim"] > before["ssim"]
    assert after["blockiness of the originals"] == before["blockiness of the originals"]


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_a_continued_run_ends_with_the_bits_of_an_uninterrupted_one(
    weight: float, index: Index, tmp_path: Path
) -> None:
    terms = {"adversarial_weight": weight, "adversarial_start": 1}
    whole = finetune_decoder(fresh_vae(), index, settings(steps=9, **terms), tmp_path / "whole", CPU)
    finetune_decoder(fresh_vae(), index, settings(steps=5, **terms), tmp_path / "cut", CPU)
    cut = finetune_decoder(fresh_vae(), index, settings(steps=9, **terms), tmp_path / "cut", CPU)
    assert not runs.differing({"x": whole.state_dict()}, {"x": cut.state_dict()})


def test_jpeg_degraded_images_are_left_out(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 60, 64)[None, :, None], (64, 64, 3)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "clean.png")
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "JPEG", quality=5)
    (tmp_path / "degraded.jpg").write_bytes(file.getvalue())
    for name in ("clean", "degraded"):
        (tmp_path / f"{name}.txt").write_text("ramp")
    kept, left_out = without_jpeg_blocks(read_folder(str(tmp_path)), 1.5, CPU)
    assert list(kept.ids) == ["clean"]
    assert list(left_out) == ["degraded"]
    assert left_out["degraded"] > 1.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 8}, "decoder.size 8 px is below the SSIM window, 11 px"),
        ({"size": 33}, "decoder.size 33 px is not a multiple of the autoencoder's factor 8"),
        ({"batch_size": 1000}, "images are fewer than one batch, decoder.batch_size 1000"),
        ({"perceptual_weight": 1.0}, "needs a feature network"),
        ({"adversarial_weight": 1.0, "size": 16}, "below the discriminator's smallest image, 24 px"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    changes: dict[str, Any], message: str, index: Index, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        finetune_decoder(fresh_vae(), index, settings(**changes), tmp_path, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "decoder.steps 0 must be at least 1"),
        ({"l1_weight": -1.0}, "decoder.l1_weight -1.0 must be at least 0"),
        ({"l1_weight": 0.0}, "every loss has weight 0"),
        ({"learning_rate": float("nan")}, "decoder.learning_rate nan must be positive"),
        ({"precision": "fp16"}, "decoder.precision 'fp16' is unknown"),
        ({"ema_decay": 1.0}, "decoder.ema_decay 1.0 is outside"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**changes)


def test_the_rate_that_makes_the_loss_infinite_is_named(index: Index, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"step \d+: the loss is not finite; lower decoder.learning_rate"):
        finetune_decoder(fresh_vae(), index, settings(steps=20, learning_rate=1e30), tmp_path, CPU)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """An autoencoder whose unusual number of groups is recorded in the metadata."""
    path = tmp_path / "autoencoder.safetensors"
    safetensors_file.write(path, fresh_vae().state_dict(), noted({}, Architecture(vae=VAE_CONFIG)))
    return path


def command(weights: Path, root: Path, run: Path, *more: str) -> None:
    train_decoder_command(
        [
            str(weights), "--folder", str(root / "train"), "--heldout",
            str(root / "heldout"), "--out", str(run), "--device", "cpu", "--decoder.steps", "3",
            "--decoder.batch-size", "4", "--decoder.size", "32", *more,
        ]
    )  # fmt: skip


def test_the_command_writes_an_autoencoder_that_is_read_back(
    weights: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command(weights, root, run)
    written = load_file(str(run / "vae.safetensors"))
    first = load_file(str(weights))
    assert written.keys() == first.keys()
    same = {name for name in written if torch.equal(written[name], first[name])}
    assert same == {name for name in written if name.startswith(("encoder.", "quant_conv."))}
    read = single_file.load(run / "vae.safetensors")
    assert read.vae is not None
    assert all(torch.equal(read.vae[name], written[name]) for name in written)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 0, 3]
    assert rows[1].keys() == {"step", "psnr", "ssim", "blockiness", "blockiness of the originals"}
    assert "before" in capsys.readouterr().out


def test_the_scale_and_shift_of_a_folders_settings_go_with_the_file(root: Path, tmp_path: Path) -> None:
    """A diffusers folder has them in vae/config.json, not in the metadata that the file gets."""
    folder, metadata = tmp_path / "folder", noted({}, Architecture(vae=VAE_CONFIG))
    first = Checkpoint(vae=fresh_vae().state_dict(), scale_shift=NOVELAI_ANIME, metadata=metadata)
    diffusers_folder.save(first, folder)
    command(folder, root, tmp_path / "run", "--decoder.steps", "1")
    assert single_file.load(tmp_path / "run" / "vae.safetensors").scale_shift == NOVELAI_ANIME


@pytest.mark.parametrize("adversarial", [0.0, 0.2])
def test_ranks_share_a_batch_and_change_rounding_alone(
    adversarial: float, weights: Path, root: Path, tmp_path: Path
) -> None:
    written, rows = [], []
    for ranks in (1, 2):
        run = tmp_path / f"{ranks}"
        arguments = [
            str(weights), "--folder", str(root / "train"), "--out", str(run), "--device", "cpu", "--decoder.steps",
            "3", "--decoder.batch-size", "4", "--decoder.size", "32", "--decoder.log-every", "1",
            "--decoder.adversarial-weight", str(adversarial),
        ]  # fmt: skip
        assert run_ranks(arguments, ranks, tmp_path / f"{ranks}-output", train_decoder_command) == [0] * ranks
        written.append(load_file(str(run / "vae.safetensors")))
        rows.append([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
    first = load_file(str(weights))
    apart, moved = (
        sum(float((a[name] - b[name]).square().sum()) for name in first) ** 0.5
        for a, b in ((written[0], written[1]), (written[0], first))
    )
    assert moved > 0
    assert apart <= DECODER_STEP_SHARE * moved
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys()
        assert all(one[name] == pytest.approx(two[name], rel=DECODER_LOSS) for name in one)


def test_ranks_that_cannot_share_a_batch_are_refused(weights: Path, root: Path, tmp_path: Path) -> None:
    arguments = [str(weights), "--folder", str(root / "train"), "--out", str(tmp_path / "run"), "--device", "cpu",
                 "--decoder.size", "32", "--decoder.batch-size", "3"]  # fmt: skip
    assert run_ranks(arguments, 2, tmp_path / "output", train_decoder_command) == [2, 2]
    said = (tmp_path / "output" / "rank0.txt").read_text()
    assert "2 ranks do not share decoder.batch_size 3 evenly; give a multiple" in said
    assert not (tmp_path / "run").exists()


def test_an_image_that_breaks_is_named_and_replaced(weights: Path, root: Path, tmp_path: Path) -> None:
    """As in training: one of 101 images, whose header is whole and whose pixels are not."""
    images, _ = caches.write_one_damaged(tmp_path / "data", root)
    run = tmp_path / "run"
    command(weights, tmp_path / "data", run, "--heldout", str(images), "--decoder.steps", "26")
    (line,) = (run / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(images / "050.png")
    assert (run / "vae.safetensors").is_file()
    (images / "051.png").write_bytes((images / "051.png").read_bytes()[:-30])
    with pytest.raises(InputError, match="2 bad images, more than 1% of the 101"):
        command(weights, tmp_path / "data", tmp_path / "second", "--heldout", str(images))


def test_the_command_refuses_what_it_cannot_do(weights: Path, root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command(weights, root, run)
    with pytest.raises(InputError, match="exists; choose another folder, or --resume"):
        command(weights, root, run)
    with pytest.raises(InputError, match=r"size was 32, now 40"):
        command(weights, root, run, "--resume", "--decoder.size", "40")
    with pytest.raises(InputError, match="is not a run of train-decoder"):
        command(weights, root, tmp_path / "other", "--resume")
    command(weights, root, run, "--resume", "--decoder.steps", "5")
    with pytest.raises(InputError, match="does not exist"):
        command(weights, root, tmp_path / "third", "--perceptual", str(tmp_path / "none.pt"))


def test_a_resumed_run_keeps_its_start_and_its_images(weights: Path, root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(InputError, match="images are fewer than one batch"):
        command(weights, root, run, "--decoder.batch-size", "1000")
    assert not run.exists()
    command(weights, root, run)
    before = (run / "vae.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="has already done 3; give at least as many"):
        command(weights, root, run, "--resume", "--decoder.steps", "2")
    with pytest.raises(InputError, match="images was 18, now 4"):
        command(weights, root, run, "--resume", "--folder", str(root / "heldout"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = VAE(VAE_CONFIG).state_dict()
    other = tmp_path / "other.safetensors"
    safetensors_file.write(other, state, noted({}, Architecture(vae=VAE_CONFIG)))
    with pytest.raises(InputError, match=r"weights \(SHA-256\) was '\w+', now '\w+'; restore them"):
        command(other, root, run, "--resume")
    assert before == ((run / "vae.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes())
    (run / "config.json").write_text("not JSON")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        command(weights, root, run, "--resume")
