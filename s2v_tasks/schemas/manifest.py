"""Manifests: what a step made, from what, by which program.

A manifest is written last, so its presence means that the outputs are whole.
"""

import hashlib
import json
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Artifact(BaseModel):
    """One object of a job: its key in the store, the SHA-256 (hex) of its bytes and their number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    sha256: str
    size_bytes: int


class Producer(BaseModel):
    """The program that made an artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package_version: str
    git_revision: str | None = None
    image_digest: str | None = None


class Manifest(BaseModel):
    """What one step (or one clip) made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    step: str
    job_id: str
    clip_index: int | None = None
    fingerprint: str
    producer: Producer
    inputs: dict[str, Artifact]
    outputs: dict[str, Artifact]
    started_at: datetime
    finished_at: datetime
    facts: dict[str, Any] = {}

    @property
    def made_at(self) -> datetime | None:
        """When the job made it; None where it is a copy of another job's."""
        return None if "source_job_id" in self.facts else self.finished_at


def fingerprint(*parts: Any) -> str:
    """SHA-256 (hex) over the canonical JSON of `parts`: equal inputs, equal fingerprint."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
