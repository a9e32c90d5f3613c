"""Manifests: the outputs of a step, its inputs, and the program that made them.

A manifest is written last, so its presence means that the outputs are complete.
"""

import hashlib
import json
from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, SerializeAsAny, ValidationInfo, field_validator

from s2v_tasks.schemas.facts import Facts, facts_of_step

F = TypeVar("F", bound=Facts)


class Artifact(BaseModel):
    """One object: its key in the store, the SHA-256 (hex) of its bytes, and its size."""

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
    """The outputs of one step, or of one clip."""

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
    facts: SerializeAsAny[Facts] = Facts()

    @field_validator("facts", mode="before")
    @classmethod
    def _facts_are_those_of_the_step(cls, value: Any, info: ValidationInfo) -> Any:
        values = value.model_dump() if isinstance(value, Facts) else value
        return facts_of_step(info.data["step"], values) if "step" in info.data and isinstance(values, dict) else values

    def facts_as(self, kind: type[F]) -> F:
        """Return the facts of a step that writes `kind`; TypeError where the step writes other facts."""
        if not isinstance(self.facts, kind):
            raise TypeError(f"facts of {self.step} are {type(self.facts).__name__}: expected {kind.__name__}")
        return self.facts

    @property
    def made_at(self) -> datetime | None:
        """Return the time when the job made the outputs; None where they are copies of another job's."""
        return None if self.facts.source_job_id else self.finished_at


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `parts`: equal parts have equal fingerprints."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
