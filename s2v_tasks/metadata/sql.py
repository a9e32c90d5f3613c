"""Shared statements of the repositories: locks, upserts and updates of rows, run ids, and storable values."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.tables import Attempt, Base, Clip, Event, Job
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import DEFAULT_PRIORITY, PRIORITIES, START_SEPARATOR
from s2v_tasks.schemas.request_fields import MAX_CLIPS

NOW = sa.func.now()
_NOT_STORABLE = re.compile(r"[\x00\ud800-\udfff]")
Row = TypeVar("Row", bound=Base)


class Repository:
    """Base of the parts of the metadata store: each public method is one transaction on the same engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def _execute(self, statement: sa.Executable) -> sa.Result[*tuple[Any, ...]]:
        """Run one statement in its own transaction and return its rows, which are all read by then."""
        with transaction(self._engine) as connection:
            result = connection.execute(statement)
            return result.freeze()() if result.returns_rows else result


def load_rows(connection: sa.Connection, table: type[Row], *conditions: Any, order: Any) -> Sequence[Row]:
    """Return the rows of a table that meet the conditions, as plain values that belong to no session."""
    statement = sa.select(table.__table__).where(*conditions).order_by(order)
    return [table(**row) for row in connection.execute(statement).mappings()]


@contextmanager
def locked_job(engine: sa.Engine, job_id: str) -> Iterator[sa.Connection]:
    """Run one transaction like `transaction`, with the row of a job locked from its beginning.

    All writers of a job take this lock first, which avoids deadlocks. PermanentError when the job was never queued.
    """
    with transaction(engine) as connection:
        if connection.execute(sa.select(Job.job_id).where(Job.job_id == job_id).with_for_update()).first() is None:
            raise PermanentError(
                f"Job {job_id!r} does not exist: `s2v jobs` lists all jobs, and `s2v stage-inputs` begins a new one."
            )
        yield connection


def upsert(connection: sa.Connection, table: type[Base], key: dict[str, Any], values: dict[str, Any]) -> None:
    """Insert a row with this primary key or update it."""
    statement = insert(table).values(**key, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=[*key], set_={**values, "updated_at": NOW}))


def upsert_job(connection: sa.Connection, job_id: str, values: dict[str, Any], **kept: Any) -> None:
    """Insert a job or update it. Columns of `kept` are set only where the job has no value yet."""
    values, kept = storable(values), storable(kept)
    statement = insert(Job).values(job_id=job_id, **values, **kept)
    unchanged = {name: sa.func.coalesce(getattr(Job, name), statement.excluded[name]) for name in kept}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["job_id"], set_={**values, **unchanged, "updated_at": NOW})
    )


def update_job(
    connection: sa.Connection, job_id: str, values: dict[str, Any], *conditions: sa.ColumnElement[bool]
) -> bool:
    """Update a job that meets the conditions; return True if there was one."""
    statement = sa.update(Job).where(Job.job_id == job_id, *conditions).values(**storable(values))
    return connection.execute(statement).rowcount > 0


def update_clip(connection: sa.Connection, job_id: str, clip_index: int, values: dict[str, Any]) -> None:
    """Update a clip; PermanentError when the recorded plan has no clip of this index."""
    statement = sa.update(Clip).where(Clip.job_id == job_id, Clip.clip_index == clip_index).values(**values)
    if connection.execute(statement).rowcount == 0:
        raise PermanentError(
            f"Clip {clip_index} of job {job_id!r} does not exist: run `s2v plan-clips` for the job first."
        )


def storable(value: Any) -> Any:
    """Replace values that PostgreSQL refuses: NUL and lone surrogates by U+FFFD, NaN and infinities by their names.

    A numeric column reads such a name as the number.
    """
    if isinstance(value, str):
        return _NOT_STORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def queued_run_id() -> sa.ColumnElement[str]:
    """Return the id of the DAG run of a waiting job: equal for all callers, different after each retry."""
    retries = (
        sa
        .select(sa.func.count())
        .where(Event.job_id == Job.job_id, Event.event == JobEvent.JOB_RETRIED)
        .correlate(Job)
        .scalar_subquery()
    )
    return sa.case((retries == 0, Job.job_id), else_=sa.func.concat(Job.job_id, START_SEPARATOR, retries + 1))


def spent_gpu_seconds() -> sa.ScalarSelect[float]:
    """Return the sum of the GPU-seconds of all attempts of a job."""
    total = sa.select(sa.func.coalesce(sa.func.sum(Attempt.gpu_seconds), 0.0)).where(Attempt.job_id == Job.job_id)
    return total.correlate(Job).scalar_subquery()


def request_columns(request: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a job row that repeat fields of its request; the request may be invalid."""
    labels, priority, from_clip = (request.get(name) for name in ("labels", "priority", "from_clip"))
    columns: dict[str, Any] = {
        "labels": labels if isinstance(labels, dict) else {},
        "priority": priority if priority in PRIORITIES else DEFAULT_PRIORITY,
        "from_clip": from_clip if isinstance(from_clip, int) and 0 <= from_clip < MAX_CLIPS else None,
    }
    for name in ("preset", "parent_job_id"):
        value = request.get(name)
        columns[name] = value if isinstance(value, str) else None
    return dict(storable(columns))
