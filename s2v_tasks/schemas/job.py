"""The vocabulary of a job: its id, status, source and priority, and the states of its parts."""

import hashlib
import re
from enum import StrEnum
from typing import Literal, get_args

from s2v_tasks.errors import PermanentError

JOB_ID_PATTERN = r"^[a-z0-9][a-z0-9-]{2,62}$"
JOB_ID_RULE = "3 to 63 lower-case letters, digits and dashes, not starting with a dash, for example talk-2026-11-22"
# Between a job id and the number of its start in the id of a DAG run; `metadata` composes the same id in SQL.
START_SEPARATOR = "--"

_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)t(\d\d):(\d\d):(\d\d).*", re.DOTALL)
_RUN_SLUG_CHARACTERS = 25  # "scheduled-20261122-101530"
_RUN_HASH_CHARACTERS = 8


class JobStatus(StrEnum):
    """Status of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RestartableStatus(StrEnum):
    """Statuses of a job that may start again, also with a corrected request."""

    FAILED = JobStatus.FAILED.value
    CANCELLED = JobStatus.CANCELLED.value


ENDED_STATUSES = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class ClipStatus(StrEnum):
    """Status of a clip."""

    PENDING = "pending"
    RENDERING = "rendering"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class AttemptOutcome(StrEnum):
    """Outcome of an attempt to encode or render.

    LOST: its process ended without a report. SUPERSEDED: it rendered a take that is not kept.
    """

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    LOST = "lost"
    SUPERSEDED = "superseded"


class Source(StrEnum):
    """The way a job was submitted."""

    UI = "ui"
    CLI = "cli"
    DROP = "drop"
    BATCH = "batch"
    RERUN = "rerun"
    API = "api"


QUEUED_SOURCES = (Source.DROP, Source.BATCH)  # jobs from these sources wait in the queue

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)  # in ascending order
DEFAULT_PRIORITY: Priority = "normal"
_RANKS: dict[str, int] = {name: rank for rank, name in enumerate(PRIORITIES)}

# Weights of tasks are 32-bit integers in Airflow's database: 3 priorities x 35,000,000 ages x 20 tasks of a pipeline.
_AGE_SECONDS, _AGES, _TASKS = 10, 35_000_000, 20
JOB_WEIGHTS_END = len(PRIORITIES) * _AGES * _TASKS  # larger than each of them


def is_job_id(value: object) -> bool:
    """Return True if `value` is a valid job id."""
    return isinstance(value, str) and re.fullmatch(JOB_ID_PATTERN, value) is not None


def check_job_id(value: str) -> str:
    """Return `value`; PermanentError unless it is a valid job id."""
    if not is_job_id(value):
        raise PermanentError(f"job id {value!r}: expected {JOB_ID_RULE}.")
    return value


def job_slug(text: str, max_characters: int = 40) -> str:
    """Return the readable part of a job id: `text` in lower-case letters, digits and dashes.

    It is empty if `text` has none of them.
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:max_characters].strip("-")


def job_id_of_run(run_id: str, job_id: object = None) -> str:
    """Return the job id of a DAG run: the `job_id` of its request, or an id derived from the run id.

    "manual__2026-11-22T10:15:30.123456+00:00" becomes "manual-20261122-101530-1a2b3c4d". The hash distinguishes runs
    whose readable parts are equal. An invalid `job_id` is returned unchanged: stage_inputs refuses it.
    """
    if job_id:
        return str(job_id)
    slug = job_slug(_TIME.sub(r"\1\2\3-\4\5\6", run_id.lower()), _RUN_SLUG_CHARACTERS)
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:_RUN_HASH_CHARACTERS]
    return f"{slug or 'run'}-{digest}"


def run_id_of_start(job_id: str, number: int) -> str:
    """Return the DAG run id of the start with this `number`, from 1: the job id, then `<job id>--2` and so on."""
    return job_id if number == 1 else f"{job_id}{START_SEPARATOR}{number}"


def task_weight(priority: str | None, submitted_at: float, own: int) -> int:
    """Return the weight of a task of a job; the waiting task with the largest weight gets the next slot.

    The priority counts first, then the age of the run in steps of 10 seconds, then `own`, the weight of the task in its
    run: a run that has begun ends before a later run begins. `submitted_at`: seconds since the epoch; ages repeat after
    11 years. An unknown priority counts as the default.
    """
    rank = _RANKS.get(str(priority), _RANKS[DEFAULT_PRIORITY])
    age = _AGES - 1 - int(submitted_at // _AGE_SECONDS) % _AGES
    return (rank * _AGES + age) * _TASKS + own % _TASKS
