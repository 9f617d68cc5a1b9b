"""`refimpl cache` where something fails: full disks, too little memory, damaged images and files, wrong arguments."""

import errno
import json
from pathlib import Path

import pytest

from refimpl.cache.latents import open_latents
from refimpl.commands.data.cache import cache_command
from refimpl.errors import InputError
from refimpl.storage import atomic
from tests.commands.data.test_cache import LATENTS
from tests.folders import flip_last_bit
from tests.train import caches, runs


def test_a_truncated_shard_is_written_again(config: str, tmp_path: Path) -> None:
    out = caches.write(config, tmp_path / "cache", *LATENTS)
    whole = caches.contents(out)
    cut, flipped, header = caches.shards(out)[:3]
    cut.write_bytes(cut.read_bytes()[:-100])
    header.write_bytes(b"\0" * 4)
    with pytest.raises(InputError, match="; run `refimpl cache` again, which replaces it"):
        [open_latents(out).entry(row, 0, False) for row in range(18)]
    caches.write(config, out, *LATENTS)
    assert caches.contents(out) == whole
    flip_last_bit(flipped)
    caches.write(config, out, *LATENTS)
    assert caches.contents(out) != whole  # a flipped bit is not looked for …
    caches.write(config, out, *LATENTS, "--verify")
    assert caches.contents(out) == whole  # … unless asked for


def test_a_second_writer_is_refused(config: str, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "cache"
    out.mkdir()
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is writing to"):
            caches.write(config, out)
    caches.write(config, out)


def test_a_full_disk_keeps_finished_shards(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "cache", []
    original = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="No space left on device; free space or choose another folder"):
            caches.write(config, out, *LATENTS)
    left = caches.files(out)
    assert len(left) == 3
    caches.write(config, out, *LATENTS)
    after = caches.files(out)
    assert all(after[name] == value for name, value in left.items())


def test_memory_that_does_not_suffice_halves_the_batch(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = caches.cache_latents.FittingEncoder._encode

    def fails(self, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        return original(self, batch)

    monkeypatch.setattr(caches.cache_latents.FittingEncoder, "_encode", fails)
    caches.write(config, tmp_path / "cache", *LATENTS, "--crops", "5", "--shard-megabytes", "1")
    assert max(sizes) > 4
    assert sum(size for size in sizes if size <= 2) == 90
    assert sum(size > 2 for size in sizes) <= 5  # learnt once, not at every batch

    def never(self, batch):
        raise MemoryError

    monkeypatch.setattr(caches.cache_latents.FittingEncoder, "_encode", never)
    with pytest.raises(InputError, match=r"not enough memory to encode one image of 32x64; use --tile"):
        caches.write(config, tmp_path / "other", *LATENTS)


def test_bad_images_are_listed_and_too_many_stop_it(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, whole = caches.write_one_damaged(tmp_path, root)
    config = caches.toml(tmp_path, tmp_path)
    out = caches.write(config, tmp_path / "cache", *LATENTS)
    printed = capsys.readouterr().out
    assert f"left out: {folder}/050.png: can't be decoded" in printed
    assert '"images": 100' in printed
    assert '"quarantined": 1' in printed
    assert list(open_latents(out).quarantined) == ["050"]
    (folder / "051.png").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(InputError, match="2 of 101 images can't be encoded, more than 1%"):
        caches.write(config, tmp_path / "cache", *LATENTS)
    (folder / "051.png").unlink()
    (folder / "051.txt").unlink()
    (folder / "050.png").write_bytes(whole)
    caches.write(config, tmp_path / "cache", *LATENTS)
    assert not open_latents(out).quarantined


def test_no_images_is_an_error(config: str, data: Path, tmp_path: Path) -> None:
    (data / "none").mkdir()
    with pytest.raises(InputError, match="no image"):
        caches.write(config, tmp_path / "cache", "--folder", str(data / "none"))
    runs.write_images(data / "wide", 2)
    squares = {"max_area": 1024, "max_side": 32}
    pruned = caches.toml(data, tmp_path, data={"max_aspect_error": 0.1}, buckets=squares)
    with pytest.raises(InputError, match="nothing to encode: every image was pruned"):
        caches.write(pruned, tmp_path / "cache", "--folder", str(data / "wide"))


def test_wrong_arguments(config: str, tmp_path: Path) -> None:
    arguments = [config, "--out", str(tmp_path / "cache"), "--device", "cpu"]
    for option, value, message in (
        ("--crops", "0", "--crops 0 must be at least 1"),
        ("--shard-megabytes", "0", "--shard-megabytes 0.0 must be positive"),
        ("--seed", "-1", "--seed -1 must lie in"),
    ):
        with pytest.raises(InputError, match=message):
            cache_command([*arguments, option, value])
    with pytest.raises(InputError, match="tile = 12 px must be a multiple of 8"):
        cache_command([*arguments, "--tile", "12"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written to"):
        caches.write(config, tmp_path / "file")


def test_a_newer_format_is_refused(config: str, tmp_path: Path) -> None:
    out = caches.write(config, tmp_path / "cache", *LATENTS)
    path = out / "latents" / "cache.json"
    manifest = json.loads(path.read_text())
    atomic.replace_text(path, json.dumps(manifest | {"format": 2}))
    with pytest.raises(InputError, match="has format 2, but this version reads 1"):
        open_latents(out)
    atomic.replace_text(path, json.dumps(manifest | {"details": {}}))
    with pytest.raises(InputError, match="the manifest of its latents lacks 'crops'"):
        open_latents(out)
    atomic.replace_text(path, "{")
    with pytest.raises(InputError, match="can't be read"):
        open_latents(out)
