"""Render clips on the ranks of one process group: a leader that reads and writes, and followers."""
