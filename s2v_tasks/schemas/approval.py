"""Approval of clips and videos by people: its states, and the fields of a rejection."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.request_fields import MAX_CLIPS, MAX_PROMPT_CHARACTERS, MAX_SEED
from s2v_tasks.schemas.request_parsing import parse_json

# The options that Airflow shows under Required Actions.
APPROVE, REJECT = "Approve", "Reject"
# An answer within seconds of the question can fail the waiting task, which then asks again (apache/airflow#66374).
EARLIEST_ANSWER_SECONDS = 10.0


class ApprovalStatus(StrEnum):
    """Status of one approval. WITHDRAWN: the job ended before an answer."""

    WAITING = "waiting"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class Rejection(BaseModel):
    """A rejection. With a changed field, a rerun renders the clips from `from_clip` on again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    note: str | None = Field(None, max_length=1000, title="Note", description="Why it is rejected.")
    from_clip: int | None = Field(
        None,
        ge=0,
        lt=MAX_CLIPS,
        title="From clip",
        description="First clip that is rendered again, counted from 0. Empty: the rejected clip, or all clips.",
    )
    prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARACTERS, title="Prompt", description="Empty: unchanged.")
    base_seed: int | None = Field(None, ge=-1, le=MAX_SEED, title="Seed", description="Empty: unchanged.")
    sample_steps: int | None = Field(None, ge=1, le=100, title="Solver steps", description="Empty: unchanged.")

    @property
    def changes(self) -> dict[str, Any]:
        """Return the fields of the request that the rerun changes."""
        given = self.model_dump(exclude={"note", "from_clip"}, exclude_none=True)
        return {name: value for name, value in given.items() if value != ""}

    def first_clip(self, clip_index: int | None, num_clip: int) -> int:
        """Return the first clip to render again; `clip_index`: the rejected clip, None for the video.

        PermanentError for a clip beyond the plan of `num_clip` clips, or after the rejected one: it is not rendered.
        """
        first = (clip_index or 0) if self.from_clip is None else self.from_clip
        last = last_first_clip(clip_index, num_clip)
        if first > last:
            raise PermanentError(f"from_clip {first}: expected 0 to {last}, the rendered clips.")
        return first


def last_first_clip(clip_index: int | None, num_clip: int) -> int:
    """Return the last clip from which a rejection may render again: the rejected clip, or the last one of the video."""
    return num_clip - 1 if clip_index is None else clip_index


def rejection_of(fields: dict[str, Any]) -> Rejection:
    """Return the rejection with these fields; PermanentError lists the wrong fields."""
    try:
        return Rejection.model_validate(fields)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, one['loc']))} {one['input']!r:.60}: {one['msg']}" for one in error.errors())
        raise PermanentError(f"Bad rejection: {'; '.join(problems)}.") from None


def parse_rejection(text: str) -> Rejection:
    """Return the rejection of a JSON text; PermanentError for anything else."""
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise PermanentError(f"The rejection is not JSON ({error}): expected an object such as {{}}.") from None
    if not isinstance(fields, dict):
        raise PermanentError(f"The rejection is a JSON {type(fields).__name__}: expected an object such as {{}}.")
    return rejection_of(fields)
