"""Hypothesis strategies of the checks' arguments; plain values, so that a counterexample can be read."""

from hypothesis import strategies as st

values = st.floats(-4, 4, width=32) | st.sampled_from((0.0, 1.0, -1.0, 1024.0))
"""one number that fills a latent"""
timesteps = st.integers(0, 999)
several_timesteps = st.lists(timesteps, min_size=1, max_size=4)
noisy_timesteps = st.integers(0, 998)
dtypes = st.sampled_from(("float32", "bfloat16", "float16"))
seeds = st.integers(0, 2**31 - 1)
finite_levels = st.floats(2**-10, 1e4, width=32)
step_counts = st.integers(2, 200)
gammas = st.sampled_from((1.0, 5.0, 20.0))
scales = st.floats(0, 12, width=32)
rescales = st.floats(0.125, 1, width=32)

sides = st.integers(64, 4096)
sizes = st.tuples(sides, sides)
small_sizes = st.tuples(st.integers(64, 160), st.integers(64, 160))
small_buckets = st.tuples(st.integers(4, 8), st.integers(4, 8)).map(lambda s: (16 * s[0], 16 * s[1]))
bucket_steps = st.sampled_from((32, 64, 128))
bucket_areas = st.sampled_from((512 * 512, 512 * 768, 768 * 768, 1024 * 1024))
bucket_sides = st.sampled_from((1024, 1536, 2048))

items = st.integers(1, 60).flatmap(lambda n: st.lists(st.integers(0, 4), min_size=n, max_size=n))
batch_sizes = st.integers(1, 4)
worlds = st.integers(1, 4)

token_ids = st.integers(0, 240).flatmap(lambda n: st.lists(st.integers(320, 40000), min_size=n, max_size=n))
chunk_counts = st.lists(st.integers(1, 4), min_size=1, max_size=4)
