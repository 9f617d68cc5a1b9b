"""Experiments on what is learned: sizes and crops as conditions, tag weights, buckets."""
