"""Hypothesis strategies of the checks' arguments; plain values, so that a counterexample can be read."""

from hypothesis import strategies as st

values = st.floats(-100, 100, width=32) | st.sampled_from(
    (0.0, -0.0, 1.0, -1.0, 1e-30, 1024.0, 3e4, -65504.0)  # the last two: the ends of float16
)
latents = st.lists(values, min_size=1, max_size=8)
"""the numbers that a latent repeats"""
timesteps = st.integers(0, 999)
several_timesteps = st.lists(timesteps, min_size=1, max_size=4)
noisy_timesteps = st.integers(0, 998)
dtypes = st.sampled_from(("float32", "bfloat16", "float16"))
seeds = st.integers(0, 2**31 - 1)
finite_levels = st.floats(0, 1e4, width=32) | st.sampled_from((1e-30, 0.029167158, 1.0, 14.6, 2254.24))
any_finite_level = st.floats(0, 2.0**127, width=32) | st.sampled_from(
    (0.0, 1e-30, 0.029167158, 1.0, 14.6, 2254.23, 2254.25, 20000.0, 1e30)
)
step_counts = st.integers(2, 200)
gammas = st.sampled_from((1.0, 5.0, 20.0)) | st.floats(2**-10, 20, width=32)
scales = st.sampled_from((0.0, 1.0, -2.0, 7.5)) | st.floats(-20, 20, width=32)
rescales = st.sampled_from((0.7, 1.0)) | st.floats(0.125, 1, width=32)

sides = st.integers(64, 4096)
sizes = st.tuples(sides, sides)
small_sizes = st.tuples(st.integers(64, 160), st.integers(64, 160))
small_buckets = st.tuples(st.integers(4, 8), st.integers(4, 8)).map(lambda s: (16 * s[0], 16 * s[1]))
bucket_steps = st.sampled_from((32, 64, 128))
bucket_areas = st.sampled_from((512 * 512, 512 * 768, 768 * 768, 1024 * 1024))
bucket_sides = st.sampled_from((1024, 1536, 2048))

items = st.tuples(st.integers(1, 60), st.sampled_from((1, 2, 5, 19))).flatmap(
    lambda drawn: st.lists(st.integers(0, drawn[1] - 1), min_size=drawn[0], max_size=drawn[0])
)
"""bucket of each item: all in one, in few, or nearly one each, of the 19 that N has"""
batch_sizes = st.integers(1, 5)
worlds = st.integers(1, 8)

token_counts = st.sampled_from((0, 1, 74, 75, 76, 149, 150, 151, 400)) | st.integers(0, 240)
token_ids = st.tuples(token_counts, st.integers(320, 39000)).map(
    lambda drawn: [drawn[1] + 619 * place % 1000 for place in range(drawn[0])]
)
"""a prompt's tokens, no two of them equal and in no order"""
sample_ids = st.lists(
    st.integers(0, 2**63 - 1) | st.sampled_from((0, 1, 2**32, 2**63 - 1)), min_size=1, max_size=6
)
"""ids of samples, as counters or as hashes have them"""
noise_shapes = st.sampled_from(((4, 4, 4), (3, 5, 7), (1, 1, 1)))
chunk_counts = st.lists(st.integers(1, 4), min_size=1, max_size=4)
