"""Names of the events of a job, as the database stores them and webhooks send them."""

from enum import StrEnum


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
    REQUEST_REFUSED = "request_refused"  # another request wanted the id of the job
    RUN_LOST = "run_lost"  # the DAG run of the job is gone
    CLIP_STARTED = "clip_started"
    CLIP_SUCCEEDED = "clip_succeeded"
    CLIP_INHERITED = "clip_inherited"
    CLIP_FAILED = "clip_failed"
    STEP_FINISHED = "step_finished"
    STEP_FAILED = "step_failed"
    USER_ACTION = "user_action"  # a person acted on the Videos page: `detail` has the action and the user's name


# Sent to the webhook of the job.
NOTIFIED_EVENTS = frozenset({
    JobEvent.JOB_STARTED, JobEvent.CLIP_SUCCEEDED, JobEvent.JOB_SUCCEEDED, JobEvent.JOB_FAILED, JobEvent.JOB_CANCELLED,
})  # fmt: skip
