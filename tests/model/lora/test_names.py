"""The nearest names: by their last parts, with numbers masked, and fast for any number of unknown ones."""

import time

from refimpl.model.lora.names import LONGEST, MOST, nearest_names

NAMES = [f"input_blocks.{i}.1.transformer_blocks.{j}.attn{k}.to_{p}" for i in (4, 5, 7, 8) for j in range(10)
         for k in (1, 2) for p in "qkv"] + ["time_embed.0", "time_embed.2", "out.2"]  # fmt: skip
SECONDS = 20  # for a thousand names on a busy machine; without masks and the limit it is many minutes


def test_a_pattern_is_compared_with_as_many_last_parts():
    assert nearest_names(NAMES)("*.attn3.to_qq")[0].endswith(".attn1.to_q")
    assert nearest_names(NAMES)("time_embd.2")[0] == "time_embed.2"


def test_of_names_that_differ_in_numbers_the_wanted_numbers_are_given():
    near = nearest_names(NAMES)("input_block.7.1.transformer_blocks.9.attn2.to_v")
    assert near[0] == "input_blocks.7.1.transformer_blocks.9.attn2.to_v"
    near = nearest_names(NAMES)("input_blocks.99.1.transformer_blocks.9.attn2.to_v")
    assert near[0] == "input_blocks.4.1.transformer_blocks.0.attn1.to_v"


def test_nothing_is_near_to_nothing():
    assert nearest_names([])("a.b") == []


def test_a_flood_of_long_names_takes_no_time():
    nearest = nearest_names(NAMES)
    unknown = [f"{'abc'[k % 3]}x{'y' * (k % 50)}." * (LONGEST + k) for k in range(1000)]
    start = time.perf_counter()
    answered = {name[:LONGEST] for name in unknown if nearest(name)}
    assert time.perf_counter() - start < SECONDS
    assert len({name[:LONGEST] for name in unknown}) > MOST
    assert len(answered) == MOST
