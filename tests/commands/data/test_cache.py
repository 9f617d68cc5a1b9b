"""`refimpl cache`: what it writes, what a killed run leaves, what makes an entry stale."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from refimpl.cache.latents import open_latents
from refimpl.cache.text_states import open_text
from refimpl.commands.data.cache import cache_command
from refimpl.commands.main import dispatch
from refimpl.data.crop import cover_and_crop, flip
from refimpl.data.images.decode import decode
from refimpl.diffusion.philox import sample_id
from refimpl.errors import InputError
from refimpl.interop.run.run_folder import load_autoencoder
from refimpl.latents.vae import VAEConfig
from refimpl.run.visit_draws import VisitDraws
from refimpl.storage.shards import map_shard
from refimpl.tables import from_table
from refimpl.text.conditioning import encode_prompts
from refimpl.text.encoders import tiny_encoders
from refimpl.text.tokenizer import tiny_tokenizer
from tests.data.lanczos import needs_lanczos
from tests.tolerances import BFLOAT16_LATENT, NETWORK_FLOAT32, TWO_LEVELS_LATENT
from tests.train import caches, runs
from tests.train.processes import run_ranks

LATENTS = ("--no-text",)


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
    """The counts printed since the last call, by kind."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    return {row["kind"]: row for row in map(json.loads, lines) if "kind" in row}


def test_every_entry_is_the_latent_of_its_crop(config: str, data: Path, tmp_path: Path) -> None:
    """Against cropping and encoding each image here, one at a time, by training's own draws."""
    out = caches.write(config, tmp_path / "cache", "--crops", "3", "--flips")
    cache = open_latents(out)
    vae = load_autoencoder(data / "autoencoder.safetensors", from_table(VAEConfig, runs.VAE_TABLE, "test"))
    draws, seen = VisitDraws(0, True), 0
    assert (cache.crops, cache.flips) == (3, True)
    for bucket in cache.first_row:
        rows = cache.rows_of(bucket)
        ids = cache.store.lookup["sample_ids"][rows].tolist()
        for name in (f"{number:03d}" for number in range(18)):
            if sample_id(name) not in ids:
                continue
            image, row = decode(data / "train" / f"{name}.png"), rows.start + ids.index(sample_id(name))
            for crop in range(3):
                for mirrored in (False, True):
                    cropped = cover_and_crop(image, bucket, draws.crop_source(name, crop))
                    picture, size_ints = flip(*cropped) if mirrored else cropped
                    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
                    latent, ints = cache.entry(row, crop, mirrored)
                    torch.testing.assert_close(latent, vae.encode(x)[0], rtol=0, atol=NETWORK_FLOAT32)
                    assert ints.tolist() == list(size_ints)
                    seen += 1
    assert seen == 18 * 6


def test_captions_states_are_those_of_the_towers(config: str, data: Path, tmp_path: Path) -> None:
    (data / "train" / "000.txt").write_text(", ".join(["red circle"] * 60))  # two chunks
    out = caches.write(config, tmp_path / "cache")
    cache = open_text(out)
    assert cache is not None
    tower_l, tower_g = tiny_encoders(0)
    captions = ["", ", ".join(["red circle"] * 60)]
    captions += [(data / "train" / f"{i:03d}.txt").read_text().replace("colour:", "") for i in range(1, 18)]
    for caption, row in zip(captions, cache.rows(captions).tolist(), strict=True):
        with torch.no_grad():
            context, pooled = encode_prompts([caption], tiny_tokenizer(), tower_l, tower_g)
        mine = cache.states(row)
        assert torch.equal(mine[0], context[0])
        assert torch.equal(mine[1], pooled[0])
    assert cache.rows(["never written"]).tolist() == [-1]


def test_a_second_run_changes_nothing(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = caches.write(config, tmp_path / "cache", "--crops", "2")
    first = said(capsys)
    assert first["latents"]["entries"] == first["latents"]["encoded"] == 36
    before = {name: value for name, value in caches.files(out).items() if "cache.json" not in name}
    caches.write(config, out, "--crops", "2")
    again = said(capsys)
    assert again["latents"]["encoded"] == again["text"]["encoded"] == 0
    after = {name: value for name, value in caches.files(out).items() if "cache.json" not in name}
    assert {n: c for n, (_, c) in after.items()} == {n: c for n, (_, c) in before.items()}
    shards = [name for name in before if "lookup" not in name]
    assert [after[name] for name in shards] == [before[name] for name in shards]
    assert len(shards) > 6


@pytest.mark.parametrize(("at", "count"), [("encode", 3), ("rename", 2), ("rename", 8), ("fsync", 9)])
def test_a_killed_run_is_continued(config: str, tmp_path: Path, at: str, count: int) -> None:
    """SIGKILL between any two steps: finished shards stay as they are, and the end is that of a run in peace."""
    whole = caches.contents(caches.write(config, tmp_path / "whole", "--crops", "2"))
    out = tmp_path / "cache"
    assert caches.killed_write(config, out, at, count, "--crops", "2") == -9
    left = {name: value for name, value in caches.files(out).items() if "writing" not in name}
    assert 0 < len(left) < len(whole)
    if (at, count) != ("rename", 8):  # by then the latents are whole
        with pytest.raises(InputError, match=r"no finished cache \(cache.json is missing\)"):
            open_latents(out)
    caches.write(config, out, "--crops", "2")
    assert caches.contents(out) == whole
    after = caches.files(out)
    assert all(after[name] == value for name, value in left.items())


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_writes_the_same_bytes(config: str, tmp_path: Path, world: int) -> None:
    """Also where one rank was killed and another number continues."""
    whole = caches.contents(caches.write(config, tmp_path / "whole"))
    out = tmp_path / "cache"
    if world == 3:
        assert caches.killed_write(config, out, "rename", 3) == -9
    arguments = [config, "--out", str(out), "--device", "cpu", *caches.SMALL_SHARDS]
    assert run_ranks(arguments, world, tmp_path / "ranks", cache_command) == [0] * world
    assert caches.contents(out) == whole


def test_only_a_changed_image_is_encoded_again(
    config: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = caches.write(config, tmp_path / "cache", "--crops", "2", *LATENTS)
    old = caches.entries(out)
    files = caches.files(out)
    said(capsys)
    Image.new("RGB", runs.SIZES[3], (9, 8, 7)).save(data / "train" / "003.png")
    os.utime(data / "train" / "004.png", ns=(1, 1))  # touched, but the same
    caches.write(config, out, "--crops", "2", *LATENTS)
    assert said(capsys)["latents"]["encoded"] == 2
    new = {key: value for key, value in caches.entries(out).items() if key not in old}
    assert {key[:2] for key in new} == {(sample_id("003"), 0), (sample_id("003"), 1)}
    cache = open_latents(out)
    for bucket in cache.first_row:
        rows = cache.rows_of(bucket)
        ids = cache.store.lookup["sample_ids"][rows].tolist()
        if sample_id("003") in ids:
            latent, _ = cache.entry(rows.start + ids.index(sample_id("003")), 1, False)
            assert any(torch.equal(latent, value) for value in new.values())
    after = caches.files(out)
    assert all(after[name] == value for name, value in files.items() if "latents-" in name)


def test_what_only_the_hash_can_tell_is_told_on_request(
    config: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other pixels under the old length and time."""
    path = data / "train" / "000.bmp"
    Image.new("RGB", (64, 32), (1, 2, 3)).save(path)
    (data / "train" / "000.png").unlink()
    before = path.stat()
    out = caches.write(config, tmp_path / "cache", *LATENTS)
    Image.new("RGB", (64, 32), (3, 2, 1)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    said(capsys)
    caches.write(config, out, *LATENTS)
    assert said(capsys)["latents"]["encoded"] == 0
    caches.write(config, out, *LATENTS, "--rehash")
    assert said(capsys)["latents"]["encoded"] == 1


def test_another_encoder_seed_tile_or_dtype_encodes_everything(
    config: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = caches.write(config, tmp_path / "cache", *LATENTS)
    state = load_file(data / "autoencoder.safetensors")
    save_file(
        state | {"decoder.conv_in.bias": state["decoder.conv_in.bias"] + 1}, data / "decoder.safetensors"
    )
    save_file(state | {"quant_conv.bias": state["quant_conv.bias"] + 1}, data / "encoder.safetensors")
    said(capsys)
    for options, encoded in (
        (["--weights", str(data / "decoder.safetensors")], 0),  # finetuned: the latents are the same
        (["--weights", str(data / "encoder.safetensors")], 18),
        (["--seed", "1"], 18),
        (["--tile", "32"], 18),
        (["--dtype", "bfloat16"], 18),
        ([], 0),  # the first ones are still there
    ):
        caches.write(config, out, *LATENTS, *options)
        assert said(capsys)["latents"]["encoded"] == encoded


def test_more_crops_and_mirrored_ones_are_added(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = caches.write(config, tmp_path / "cache", *LATENTS)
    first = caches.entries(out)
    said(capsys)
    caches.write(config, out, *LATENTS, "--crops", "2")
    assert said(capsys)["latents"]["encoded"] == 18
    caches.write(config, out, *LATENTS, "--crops", "2", "--flips")
    assert said(capsys)["latents"]["encoded"] == 36
    every = caches.entries(out)
    assert len(every) == 72
    assert all(torch.equal(every[key], latent) for key, latent in first.items())


def test_other_buckets_encode_what_moves(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """48×48 and 40×56 images lie in one bucket, 64×32 and 32×64 in others: those two stay."""
    out = caches.write(caches.toml(root, tmp_path), tmp_path / "cache", *LATENTS)
    said(capsys)
    other = caches.toml(root, tmp_path, buckets={"max_area": 2304, "max_side": 64, "min_side": 32, "step": 8})
    caches.write(other, out, *LATENTS)
    assert said(capsys)["latents"]["encoded"] == 4  # of 40×56


def test_tiles(config: str, data: Path, tmp_path: Path) -> None:
    """A tile that covers every bucket changes no bit; smaller ones give the whole's latents but for rounding."""
    whole = caches.entries(caches.write(config, tmp_path / "whole", *LATENTS))
    covered = caches.entries(caches.write(config, tmp_path / "covered", *LATENTS, "--tile", "64"))
    assert all(torch.equal(covered[key], latent) for key, latent in whole.items())
    tiled = caches.entries(caches.write(config, tmp_path / "tiled", *LATENTS, "--tile", "32"))
    vae = load_autoencoder(data / "autoencoder.safetensors", from_table(VAEConfig, runs.VAE_TABLE, "test"))
    draws = VisitDraws(0, False)
    for name, bucket in (("000", (64, 32)), ("001", (32, 64)), ("003", (48, 48))):
        image = decode(data / "train" / f"{name}.png")
        picture, _ = cover_and_crop(image, bucket, draws.crop_source(name, 0))
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        (latent,) = (value for key, value in tiled.items() if key[0] == sample_id(name))
        with torch.no_grad():
            expected = vae.encode(x, tile=32)[0]
        torch.testing.assert_close(latent, expected, rtol=0, atol=NETWORK_FLOAT32)
        (other,) = (value for key, value in whole.items() if key[0] == sample_id(name))
        assert (latent - other).abs().max() <= NETWORK_FLOAT32 * other.abs().max()


@needs_lanczos
def test_loader_processes_and_the_fast_decoder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers change no byte; the fast decoder's latents are entries of their own, near the others."""
    pytest.importorskip("simplejpeg")
    runs.write_images(data / "jpegs", 3)
    for path in (data / "jpegs").glob("*.png"):
        Image.open(path).resize((130, 100)).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    arguments = ("--folder", str(data / "jpegs"), "--crops", "2", *LATENTS)
    out = caches.write(caches.toml(data, tmp_path), tmp_path / "cache", *arguments)
    with_workers = caches.toml(data, tmp_path, data={"workers": 2})
    assert caches.contents(caches.write(with_workers, tmp_path / "two", *arguments)) == caches.contents(out)
    pillow = caches.entries(out)
    said(capsys)
    fast = caches.write(caches.toml(data, tmp_path, data={"decoder": "fast"}), tmp_path / "fast", *arguments)
    for key, latent in caches.entries(fast).items():
        torch.testing.assert_close(latent, pillow[key], rtol=0, atol=TWO_LEVELS_LATENT)
    caches.write(caches.toml(data, tmp_path, data={"decoder": "fast"}), out, *arguments)
    assert said(capsys)["latents"]["encoded"] == 6


def test_bfloat16(config: str, tmp_path: Path) -> None:
    full = caches.entries(caches.write(config, tmp_path / "a", *LATENTS))
    half = caches.entries(caches.write(config, tmp_path / "b", *LATENTS, "--dtype", "bfloat16"))
    assert full.keys() == half.keys()
    for key, latent in half.items():
        assert latent.dtype == torch.bfloat16
        torch.testing.assert_close(latent.float(), full[key], rtol=0, atol=BFLOAT16_LATENT)


def test_stages_share_what_they_have_in_common(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stages of one folder: the buckets that both have hold each image once. Another folder may reuse ids."""
    runs.write_images(data / "other", 6, seed=7)
    stages = [
        {"from_step": 0, "buckets": runs.BUCKETS},
        {"from_step": 2, "buckets": {"max_area": 1024, "max_side": 32, "min_side": 32, "step": 16}},
        {"from_step": 3, "buckets": runs.BUCKETS, "folder": str(data / "other")},
        {"from_step": 4, "buckets": runs.BUCKETS},
    ]
    caches.write(caches.toml(data, tmp_path, stages=stages), tmp_path / "cache", *LATENTS)
    assert said(capsys)["latents"]["entries"] == 18 + 18 + 6


def test_shuffled_tags_have_no_states(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = caches.toml(data, tmp_path, data={"shuffle_tags": True})
    dispatch(["cache", config, "--out", str(tmp_path / "cache"), "--device", "cpu"])
    assert "data.shuffle_tags gives a caption other states at every visit" in capsys.readouterr().out
    assert open_text(tmp_path / "cache") is None


def test_open_files_do_not_add_up(config: str, tmp_path: Path) -> None:
    """Thousands of shards must not need thousands of open files."""
    out = caches.write(config, tmp_path / "cache", *LATENTS, "--shard-megabytes", "1e-6")
    before = len(os.listdir("/proc/self/fd"))
    kept = [map_shard(path) for path in caches.shards(out)]
    assert len(kept) == 18
    assert len(os.listdir("/proc/self/fd")) == before
