"""Events of a job: their names, and the webhook message that is sent for some of them.

The database stores the names, and webhooks send them.
"""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class JobEvent(StrEnum):
    """An event of a job, of one of its clips or of one of its steps."""

    JOB_QUEUED = "job_queued"
    JOB_STARTED = "job_started"
    JOB_PLANNED = "job_planned"
    JOB_SUCCEEDED = "job_succeeded"
    JOB_FAILED = "job_failed"
    JOB_CANCELLED = "job_cancelled"
    JOB_RETRIED = "job_retried"
    CANCEL_REQUESTED = "cancel_requested"
    REQUEST_REFUSED = "request_refused"  # a different request used the id of the job
    RUN_LOST = "run_lost"  # the DAG run of the job is gone
    CLIP_STARTED = "clip_started"
    CLIP_MEASURED = "clip_measured"
    CLIP_SUCCEEDED = "clip_succeeded"
    CLIP_INHERITED = "clip_inherited"
    CLIP_FAILED = "clip_failed"
    CLIP_INTERRUPTED = "clip_interrupted"  # it is pending again
    STEP_FINISHED = "step_finished"
    STEP_FAILED = "step_failed"
    APPROVAL_REQUESTED = "approval_requested"  # of a clip, or without `clip_index` of the video
    APPROVAL_GIVEN = "approval_given"
    APPROVAL_REFUSED = "approval_refused"
    APPROVAL_EXPIRED = "approval_expired"
    USER_ACTION = "user_action"  # a person acted on the Videos page: `detail` has the action and the user's name


# Sent to the webhook of the job.
NOTIFIED_EVENTS = frozenset({
    JobEvent.JOB_STARTED, JobEvent.CLIP_SUCCEEDED, JobEvent.JOB_SUCCEEDED, JobEvent.JOB_FAILED, JobEvent.JOB_CANCELLED,
    JobEvent.APPROVAL_REQUESTED, JobEvent.APPROVAL_GIVEN, JobEvent.APPROVAL_REFUSED, JobEvent.APPROVAL_EXPIRED,
})  # fmt: skip


class WebhookMessage(BaseModel):
    """The body of a webhook message (docs/how-to/webhooks.md).

    Fields that are also columns of the table `jobs` have the value of the job. The others have the value of the event.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: Literal[1] = 1
    event: JobEvent
    at: str
    job_id: str
    clip_index: int | None
    num_clip: int | None
    num_frames: int | None
    labels: dict[str, Any]
    detail: dict[str, Any]
