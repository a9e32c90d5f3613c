"""Weights on disk: the layout of a snapshot, its identity and strict loading."""

from s2v_tasks.engine.loading.identity import snapshot_id
from s2v_tasks.engine.loading.snapshot import Snapshot

__all__ = ["Snapshot", "snapshot_id"]
