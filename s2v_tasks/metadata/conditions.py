"""What becomes of the conditions of a job: attempts to encode them, and other jobs that have the same."""

from datetime import datetime

import sqlalchemy as sa

from s2v_tasks.metadata.attempts import CONDITIONS, begin_attempt, credit_attempt, end_attempts
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.statements import lock_job
from s2v_tasks.metadata.tables import ArtifactRow
from s2v_tasks.schemas.job import AttemptOutcome

_JOBS_LOOKED_AT = 3  # one of them may have lost its objects


class ConditionsLedger:
    """What encoding costs; each call is one transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def conditions_started(self, job_id: str) -> None:
        """An attempt to encode begins, on one GPU."""
        with transaction(self._engine) as connection:
            lock_job(connection, job_id)
            begin_attempt(connection, job_id, CONDITIONS, world_size=1)

    def conditions_ended(self, job_id: str, *, outcome: AttemptOutcome, reason: str | None = None) -> None:
        """The attempt that runs, if one does, has ended."""
        with transaction(self._engine) as connection:
            lock_job(connection, job_id)
            end_attempts(connection, job_id, CONDITIONS, outcome=outcome, reason=reason)

    def conditions_reused(self, job_id: str, *, made_at: datetime | None) -> None:
        """The conditions are there; `made_at`: when this job encoded them, see `ClipLedger.clip_succeeded`."""
        with transaction(self._engine) as connection:
            lock_job(connection, job_id)
            if made_at is not None:
                credit_attempt(connection, job_id, CONDITIONS, made_at)
            end_attempts(connection, job_id, CONDITIONS, outcome=AttemptOutcome.LOST)

    def jobs_with_conditions(self, fingerprint: str) -> list[str]:
        """Jobs whose conditions are made from the same, the latest first."""
        statement = (
            sa
            .select(ArtifactRow.job_id)
            .where(ArtifactRow.fingerprint == fingerprint, ArtifactRow.step == CONDITIONS.step)
            .order_by(ArtifactRow.updated_at.desc())
            .limit(_JOBS_LOOKED_AT)
        )
        with transaction(self._engine) as connection:
            return list(connection.execute(statement).scalars())
