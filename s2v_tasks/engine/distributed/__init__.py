"""Distributed rendering of one clip: parallelism is attached to the networks from outside, by hooks."""
