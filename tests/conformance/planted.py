"""Implementations with one mistake each: for every check, one that it must notice.

Each is this project's adapter with one method changed, by a mistake that a trainer could have.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from refimpl.conformance.adapters.reference import Reference
from refimpl.conformance.checks.exact import exact_schedule

REFERENCE = Reference()


def plant(**methods: Callable[..., Any]) -> Reference:
    """The reference with these methods instead of its own."""
    return type("Planted", (Reference,), {name: staticmethod(method) for name, method in methods.items()})()


def after(method: str, change: Callable[..., Any]) -> Reference:
    """The reference with a method whose result is changed: change(result, *arguments)."""
    original = getattr(REFERENCE, method)
    return plant(**{method: lambda *arguments: change(original(*arguments), *arguments)})


def changed_at(values: torch.Tensor, place: int, value: float) -> torch.Tensor:
    """A copy with one value changed."""
    values = values.clone()
    values[place] = value
    return values


def half_schedule(zero_snr: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of a table that was stored in bfloat16."""
    abar = (exact_schedule(zero_snr).alpha ** 2).bfloat16().double()
    return abar.sqrt(), (1 - abar).sqrt()


def noised_by_half(x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Noised with the coefficients of `half_schedule`."""
    alpha, sigma = (part[t].view(-1, 1, 1, 1) for part in half_schedule(True))
    return (alpha * x0 + sigma * eps).to(x0.dtype)


def noised_plainly(x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Noised with the published schedule, which leaves signal at t = 999."""
    alpha, sigma = (part.view(-1, 1, 1, 1) for part in exact_schedule(False).at(t))
    return (alpha * x0 + sigma * eps).to(x0.dtype)


def plain_weight(t: torch.Tensor, gamma: float) -> torch.Tensor:
    """MinSNR with the SNR of the published schedule, as when the rescale comes after it was stored."""
    snr = exact_schedule(False).snr[t]
    return snr.clamp(max=gamma) / (snr + 1)


def drawn_by_batch(seed: int, ids: list[int], visit: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Noise of one generator for the whole batch."""
    generator = torch.Generator().manual_seed(seed + 7919 * visit + 31 * sum(ids))
    return torch.randn(len(ids), *shape, generator=generator)


def naive_scalings(sigma: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The equations as they are printed."""
    return 1 / (sigma**2 + 1), -sigma / (sigma**2 + 1).sqrt(), 1 / (sigma**2 + 1).sqrt()


def clamped_step(
    noise: torch.Tensor, network: Callable[..., torch.Tensor], sigma_next: float, sigma: float = 4096.0
) -> torch.Tensor:
    """An Euler step from a clamped level, with the state in the noise's dtype."""
    root = math.hypot(sigma, 1)
    y = noise * sigma
    x0 = y / root**2 - network(y / root) * (sigma / root)
    return y + (y - x0) / sigma * (sigma_next - sigma)


def scaled_input(
    noise: torch.Tensor, network: Callable[..., torch.Tensor], sigma_next: float
) -> torch.Tensor:
    """The network is given noise of another variance."""
    return REFERENCE.first_step(noise, lambda x: network(1.01 * x), sigma_next)


def asked_twice(noise: torch.Tensor, network: Callable[..., torch.Tensor], sigma_next: float) -> torch.Tensor:
    """A second-order first step."""
    network(noise)
    return REFERENCE.first_step(noise, network, sigma_next)


def float_trailing(kind: str, n: int) -> torch.Tensor:
    """Trailing timesteps by floating-point steps, which overshoot for some n."""
    if kind != "trailing":
        return REFERENCE.grid(kind, n)
    steps = torch.tensor(__import__("numpy").arange(1000, 0, -1000 / n)).round().clamp(min=1) - 1
    return torch.cat([exact_schedule(True).t_to_sigma_edm(steps), torch.zeros(1)])


def without_square(*arguments: int) -> list[tuple[int, int]]:
    """Portrait sizes only."""
    return [(w, h) for w, h in REFERENCE.buckets(*arguments) if w <= h]


def linear_assign(sizes: list[tuple[int, int]]) -> list[tuple[int, int] | None]:
    """By the plain difference of aspects, pruned by it as well."""
    from refimpl.data.bucket_sizes import PRESETS
    from refimpl.data.buckets import assign

    buckets = PRESETS["novelai_v3"]
    index, error = assign([w for w, _ in sizes], [h for _, h in sizes], buckets, "linear")
    return [buckets[i] if e < 2 else None for i, e in zip(index, error, strict=True)]


def own_draws(
    bucket_of: list[int], batch_size: int, world_size: int, seed: int, epoch: int
) -> list[list[tuple[int, list[int]]]]:
    """Each rank draws its own batches, as N §4.1.2 says."""
    from refimpl.data.plan import plan_epoch

    plan = plan_epoch(bucket_of, batch_size, seed, epoch, world_size, "paper")
    return [[(b, i.tolist()) for b, i in plan.batches(rank)] for rank in range(world_size)]


def whole_epoch(*arguments: Any) -> Any:
    """The epoch from its start, whatever was done."""
    return REFERENCE.epoch(*arguments[:5])


def rest_shuffled(*arguments: Any) -> Any:
    """What is left, in another order."""
    return [list(reversed(rank)) for rank in REFERENCE.resume(*arguments)]


def distorted(image: torch.Tensor, bucket: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Simply rescaled to the bucket."""
    height, width = image.shape[1:]
    size = (bucket[1], bucket[0])
    scaled = torch.nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return scaled, (height, width, 0, 0, *size)


def too_far(image: torch.Tensor, bucket: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, ...]]:
    """A coordinate image cropped from beyond its left edge, where it was extended."""
    cropped, ints = REFERENCE.crop(image, bucket)
    slope = float(cropped[0].mean(0).diff().median())
    shifted = cropped.clone()
    shifted[0] -= slope * (ints[3] + 3)
    return shifted, (*ints[:3], -3, *ints[4:])


def zoomed(image: torch.Tensor, bucket: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Scaled to cover twice the bucket, of which the corner is cropped."""
    cropped, ints = REFERENCE.crop(image, (2 * bucket[0], 2 * bucket[1]))
    return cropped[:, : bucket[1], : bucket[0]], (*ints[:4], bucket[1], bucket[0])


def with_ints(place: int, offset: int) -> Reference:
    """One of the six integers is off."""
    return after(
        "crop", lambda found, *_: (found[0], [v + offset * (i == place) for i, v in enumerate(found[1])])
    )


def centre_claimed(found: Any, image: torch.Tensor, bucket: tuple[int, int]) -> Any:
    """The crop of a survey is random, but told as if it were not: the offsets are left out."""
    return found[0], [*found[1][:2], 0, 0, *found[1][4:]]


def rows(change: Callable[[torch.Tensor, bool], torch.Tensor]) -> Reference:
    """The rows of both encoders changed: change(rows, whether they are bigG's)."""
    return after("chunks", lambda found, *_: (change(found[0], False), change(found[1], True)))


def padded_pool(states: list[torch.Tensor]) -> torch.Tensor:
    """The mean over the batch's longest prompt, the others filled up with zeros."""
    longest = max(len(state) for state in states)
    return torch.stack([state.sum(0) / longest for state in states])


PLANTED: dict[str, Reference] = {
    "schedule.published_table": after("schedule", lambda abar, zero: abar if zero else abar * (1 - 1e-4)),
    "schedule.published_end": after(
        "schedule", lambda abar, zero: abar if zero else changed_at(abar, 999, 0.004)
    ),
    "schedule.zero_snr_table": after(
        "schedule", lambda abar, zero: abar.float().double() * (1 - 1e-5 * zero)
    ),
    "schedule.zero_snr_end": after(
        "schedule", lambda abar, zero: changed_at(abar, 999, 2**-24) if zero else abar
    ),
    "schedule.zero_snr_first": after(
        "schedule", lambda abar, zero: changed_at(abar, 0, 0.9995) if zero else abar
    ),
    "schedule.zero_snr_last_finite": after(
        "schedule", lambda abar, zero: changed_at(abar, 998, 4e-7) if zero else abar
    ),
    "schedule.decreasing": after("schedule", lambda abar, zero: changed_at(abar, 500, float(abar[499]))),
    "noised.mixes": plant(noised=noised_by_half),
    "noised.pure_noise": plant(noised=noised_plainly),
    "noised.low_noise_in_bfloat16": plant(noised=noised_by_half),
    "noised.keeps_dtype": plant(noised=lambda x0, eps, t: REFERENCE.noised(x0, eps, t).float()),
    "noised.batch_independent": plant(
        noised=lambda x0, eps, t: REFERENCE.noised(x0, eps, t[:1].expand(len(t)))
    ),
    "target.velocity": plant(target=lambda x0, eps, t: -REFERENCE.target(x0, eps, t)),
    "target.pure_noise": plant(target=lambda x0, eps, t: eps),
    "target.inverts": plant(target=lambda x0, eps, t: eps - x0),
    "weight.min_snr": plant(weight=plain_weight),
    "weight.mass_from_800": plant(weight=plain_weight),
    "weight.mass_from_950": plant(weight=plain_weight),
    "weight.finite": after("weight", lambda weight, t, gamma: weight / exact_schedule(True).snr[t]),
    "weight.at_zero_snr": after("weight", lambda weight, t, gamma: weight.clamp(min=0.1)),
    "keyed.repeats": plant(keyed=lambda seed, ids, visit, shape: torch.randn(len(ids), *shape)),
    "keyed.batch_independent": plant(keyed=drawn_by_batch),
    "keyed.distinct": plant(keyed=lambda seed, ids, visit, shape: REFERENCE.keyed(seed, ids, 0, shape)),
    "keyed.standard_normal": after("keyed", lambda noise, *_: noise + 0.5),
    "keyed.uncorrelated": after("keyed", lambda noise, *_: (noise + noise[:1]) / 2**0.5),
    "scalings.finite_levels": after("scalings", lambda found, sigma: (found[0], -found[1], found[2])),
    "scalings.without_noise": after("scalings", lambda found, sigma: (found[0], found[1] - 1e-8, found[2])),
    "scalings.at_infinity": plant(scalings=naive_scalings),
    "scalings.huge_levels": plant(scalings=naive_scalings),
    "sigma_to_t.at_infinity": after("sigma_to_t", lambda t, sigma: torch.where(sigma.isinf(), 0, t)),
    "sigma_to_t.at_the_table": after("sigma_to_t", lambda t, sigma: (t + 1).clamp(max=999)),
    "sigma_to_t.rises": after("sigma_to_t", lambda t, sigma: 999 - t),
    "sigma_to_t.stays_inside": after("sigma_to_t", lambda t, sigma: t + 10),
    "sigma_to_t.beyond_the_last_finite": after("sigma_to_t", lambda t, sigma: t.clamp(max=998)),
    "sigma_to_t.between_two_levels": after("sigma_to_t", lambda t, sigma: t.round()),
    "first_step.from_infinity": plant(first_step=clamped_step),
    "first_step.in_bfloat16": plant(first_step=clamped_step),
    "first_step.network_sees_the_noise": plant(first_step=scaled_input),
    "first_step.one_call": plant(first_step=asked_twice),
    "grid.trailing_length": plant(grid=float_trailing),
    "grid.length": after("grid", lambda grid, *_: torch.cat([grid[:1], grid])),
    "grid.ends_in_zero": after("grid", lambda grid, *_: grid[:-1]),
    "grid.decreases": after("grid", lambda grid, *_: torch.cat([grid[:1], grid[:1], grid[1:]])),
    "grid.native_start": after("grid", lambda grid, *_: grid.clamp(max=4096.0)),
    "grid.trailing_start": after("grid", lambda grid, *_: grid.clamp(max=20000.0)),
    "grid.leading_start": plant(grid=lambda kind, n: torch.linspace(37.9, 0, n + 1)),
    "grid.native_second": after("grid", lambda grid, *_: torch.cat([grid[:1], grid[1:] * 1.01])),
    "grid.karras_spacing": plant(grid=lambda kind, n: torch.linspace(14.6, 0, n + 1)),
    "grid.exponential_spacing": plant(grid=lambda kind, n: torch.linspace(14.6, 0, n + 1)),
    "grid.lowest_level": after("grid", lambda grid, *_: torch.cat([grid[:-2], grid[-2:] * 1.5])),
    "guide.linear": after("guide", lambda v, cond, uncond, scale, factor: v + 0.01 * uncond),
    "guide.scale_one": plant(guide=lambda cond, uncond, scale, factor: cond + scale * (cond - uncond)),
    "guide.rescales": plant(
        guide=lambda cond, uncond, scale, factor: REFERENCE.guide(cond, uncond, scale, 0.0)
    ),
    "guide.flat_sample": after("guide", lambda v, *_: v * (v.std() / v.std())),
    "guide.per_sample": after("guide", lambda v, *_: v - v.mean()),
    "buckets.within_area": after("buckets", lambda found, area, most, *_: [*found, (most, most)]),
    "buckets.within_sides": after("buckets", lambda found, area, most, least, step: [*found, (step, step)]),
    "buckets.multiples": after("buckets", lambda found, *_: [(w - 1, h - 1) for w, h in found]),
    "buckets.turned": plant(buckets=without_square),
    "buckets.distinct": after("buckets", lambda found, *_: [*found, found[0]]),
    "buckets.novelai_set": after("buckets", lambda found, *_: found[1:]),
    "assign.same_shape_same_bucket": plant(
        assign=lambda sizes: [(1024, 1024) if len(sizes) == 1 else REFERENCE.assign([s])[0] for s in sizes]
    ),
    "assign.nearest_aspect": after("assign", lambda found, sizes: [f and f[::-1] for f in found]),
    "assign.symmetric": plant(assign=linear_assign),
    "assign.pruning": plant(assign=linear_assign),
    "assign.mean_error": plant(assign=lambda sizes: [(1024, 1024)] * len(sizes)),
    "epoch.once": after("epoch", lambda ranks, *_: [[*rank, rank[0]] for rank in ranks]),
    "epoch.nothing_lost": after("epoch", lambda ranks, *_: [rank[1:] for rank in ranks]),
    "epoch.full_batches": after("epoch", lambda ranks, *_: [[*rank, (0, [])] for rank in ranks]),
    "epoch.equal_steps": after("epoch", lambda ranks, *_: [rank[n:] for n, rank in enumerate(ranks)]),
    "epoch.repeats": plant(
        epoch=lambda items, size, world, seed, epoch: REFERENCE.epoch(
            items, size, world, int(torch.randint(2**31, ())), epoch
        )
    ),
    "epoch.shuffles": plant(
        epoch=lambda items, size, world, seed, epoch: REFERENCE.epoch(items, size, world, 0, 0)
    ),
    "epoch.mixed_batches": after("epoch", lambda ranks, *_: [rank[: len(rank) // 2] for rank in ranks]),
    "epoch.equal_shapes": plant(epoch=own_draws),
    "resume.goes_on": plant(resume=rest_shuffled),
    "resume.from_the_start": plant(resume=rest_shuffled),
    "resume.nothing_after_the_end": plant(resume=whole_epoch),
    "crop.integers_name_the_crop": with_ints(3, 4),
    "crop.integers_of_a_survey": after("crop", centre_claimed),
    "crop.keeps_aspect": plant(crop=distorted),
    "crop.stays_inside": plant(crop=too_far),
    "crop.least_cover": plant(crop=zoomed),
    "crop.original_size": with_ints(0, 1),
    "crop.target_size": with_ints(5, 8),
    "chunks.framed": rows(lambda row, big: torch.where(row == 49406, 49407, row)),
    "chunks.complete": rows(lambda row, big: row[:1]),
    "chunks.fewest": rows(lambda row, big: torch.cat([row, row[-1:]])),
    "chunks.padding": rows(lambda row, big: torch.where(row == 0, 49407, row)),
    "pool.of_one_chunk": after("pool", lambda pooled, states: pooled * 0.99),
    "pool.batch_independent": plant(pool=padded_pool),
    "pool.of_several": plant(pool=lambda states: torch.stack([state[0] for state in states])),
    "size_ints.order": after("size_ints", lambda ints, *_: ints[[1, 0, 2, 3, 4, 5]]),
    "size_ints.exact": after("size_ints", lambda ints, *_: ints.bfloat16()),
    "size_ints.of_1217": after("size_ints", lambda ints, *_: ints.bfloat16()),
    "markers.both": plant(markers=lambda keys: ("v" if "v_pred" in keys else "eps", False)),
    "markers.prediction_alone": plant(markers=lambda keys: ("v", True)),
    "markers.neither": plant(markers=lambda keys: ("v", True)),
}
"""For each check an implementation that deviates from it, or, of a choice, that chooses otherwise."""
