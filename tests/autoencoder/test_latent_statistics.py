"""Statistics of a data set: the same for any number of ranks and any batches, from images and from a cache."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from refimpl.autoencoder.latent_statistics import curve_points, measure_latents
from refimpl.commands.data.stats import stats_command
from refimpl.commands.paper.figures import figures_command
from refimpl.errors import InputError
from refimpl.latents.scale_shift import ScaleShift
from refimpl.report.measured_latents import convergence
from refimpl.run.world import World
from tests.tolerances import FLOAT32_ROUNDING, NETWORK_FLOAT32, WELFORD_RELATIVE
from tests.train import caches, runs
from tests.train.processes import run_ranks

BUCKETS = [(16, 8), (16, 16), (8, 24)]


def latents_of(count: int) -> tuple[np.ndarray, list[Tensor]]:
    """Buckets, and latents [2, h, w] float64 whose channels have mean 5 and −3 and std 2 and 0.1."""
    draw = torch.Generator().manual_seed(0)
    bucket_of = torch.randint(0, len(BUCKETS), (count,), generator=draw).numpy()
    wide = torch.tensor([2.0, 0.1])[:, None, None], torch.tensor([5.0, -3.0])[:, None, None]
    shapes = [(BUCKETS[b][1] // 8, BUCKETS[b][0] // 8) for b in bucket_of]
    return bucket_of, [
        torch.randn(2, *shape, generator=draw, dtype=torch.float64) * wide[0] + wide[1] for shape in shapes
    ]


@given(count=st.integers(1, 200), seed=st.integers(0, 3))
def test_every_point_of_the_curve_is_the_one_pass_value(count: int, seed: int) -> None:
    """Statistics of the first n images of the order, against torch over all their cells at once."""
    bucket_of, latents = latents_of(count)
    seen: list[int] = []

    def read(batches):
        for bucket, items in batches:
            assert all(BUCKETS[bucket_of[item]] == bucket for item in items)
            seen.extend(int(item) for item in items)
            yield torch.stack([latents[int(item)] for item in items])

    measured = measure_latents(read, 2, BUCKETS, bucket_of, seed, World(0, 1, torch.device("cpu")))
    ends = [images for images, _ in measured.curve]
    assert ends == curve_points(count)
    assert sorted(seen[:count]) == list(range(count))
    for images, statistics in measured.curve:
        values = torch.cat([latents[item].flatten(1) for item in seen[:images]], dim=1)
        torch.testing.assert_close(statistics.mean, values.mean(1), rtol=WELFORD_RELATIVE, atol=0)
        torch.testing.assert_close(statistics.std, values.std(1), rtol=WELFORD_RELATIVE, atol=0)
    images, after = measured.standardised
    assert images == count
    torch.testing.assert_close(after.mean, torch.zeros(2).double(), rtol=0, atol=FLOAT32_ROUNDING)
    torch.testing.assert_close(after.std, torch.ones(2).double(), rtol=FLOAT32_ROUNDING, atol=0)


def test_points_of_the_curve() -> None:
    assert curve_points(1) == [1]
    assert curve_points(10) == [1, 2, 3, 4, 6, 7, 10]
    assert len(curve_points(6_000_000)) < 60
    assert curve_points(6_000_000)[-1] == 6_000_000


def measured(config: str, out: Path, *options: str) -> dict:
    stats_command([config, "--out", str(out), "--device", "cpu", *options])
    return json.loads(out.read_text())


def test_images_and_their_cache_agree(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of exactly the bucket's size have only one crop, which is also the central one."""
    config = caches.toml(
        root, tmp_path, buckets={"max_area": 2304, "max_side": 64, "min_side": 32, "step": 8}
    )
    images = measured(config, tmp_path / "images.json")
    cache = caches.write(config, tmp_path / "cache", "--no-text")
    capsys.readouterr()
    cached = measured(config, tmp_path / "cached.json", "--cache", str(cache))
    assert '"images": 18' in capsys.readouterr().out
    for one, other in zip(images["measured"]["curve"], cached["measured"]["curve"], strict=True):
        assert one["images"] == other["images"]
        for name in ("mean", "std"):
            assert one[name] == pytest.approx(other[name], abs=NETWORK_FLOAT32)
    preset = ScaleShift.from_json((tmp_path / "cached.json").read_text())
    assert list(preset.mean) == cached["measured"]["curve"][-1]["mean"]
    assert cached["measured"]["standardised"]["mean"] == pytest.approx([0] * 4, abs=FLOAT32_ROUNDING)
    assert cached["measured"]["standardised"]["std"] == pytest.approx([1] * 4, rel=FLOAT32_ROUNDING)
    runs.go(runs.config(root, tmp_path / "run", latents={"scale_shift": str(tmp_path / "cached.json")}))


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_measures_the_same(root: Path, tmp_path: Path, world: int) -> None:
    config = caches.toml(root, tmp_path)
    cache = caches.write(config, tmp_path / "cache", "--no-text")
    one = measured(config, tmp_path / "one.json", "--cache", str(cache))
    arguments = [config, "--out", str(tmp_path / "many.json"), "--device", "cpu", "--cache", str(cache)]
    assert run_ranks(arguments, world, tmp_path / "ranks", stats_command) == [0] * world
    many = json.loads((tmp_path / "many.json").read_text())
    assert [row["images"] for row in many["measured"]["curve"]] == curve_points(18)
    for name in ("mean", "std"):
        assert many[name] == pytest.approx(one[name], rel=WELFORD_RELATIVE)


def test_figures_of_what_was_measured(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(caches.toml(root, tmp_path), tmp_path / "preset.json")
    figures_command(["--statistics", str(tmp_path / "preset.json"), "--out", str(tmp_path / "figures")])
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [path.name for path in paths] == ["latent_statistics.png", "latent_convergence.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.width == 1800
    rows = json.loads((tmp_path / "preset.json").read_text())["measured"]["curve"]
    lines = convergence(rows).axes[1].get_lines()
    assert np.asarray(lines[0].get_xdata()).tolist() == curve_points(18)
    drawn = np.array([line.get_ydata() for line in lines[:4]], np.float64)
    stds = np.array([row["std"] for row in rows])
    np.testing.assert_allclose(
        drawn.T, (stds - stds[-1]) / stds[-1], rtol=WELFORD_RELATIVE, atol=WELFORD_RELATIVE
    )
    (tmp_path / "plain.json").write_text('{"mean": [1], "std": [1]}')
    for name, message in (("plain.json", "is not a file written by"), ("nowhere.json", "can't be read")):
        with pytest.raises(InputError, match=message):
            figures_command(["--statistics", str(tmp_path / name), "--out", str(tmp_path / "figures")])
    with pytest.raises(InputError, match="the curve is empty"):
        convergence([])


def test_a_preset_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    (tmp_path / "preset.json").write_text("mine")
    with pytest.raises(InputError, match="exists; choose another name"):
        measured(caches.toml(root, tmp_path), tmp_path / "preset.json")
