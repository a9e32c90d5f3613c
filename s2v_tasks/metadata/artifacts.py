"""Stored objects of jobs: which step made them, and from what."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from s2v_tasks.metadata.attempts import CONDITIONS
from s2v_tasks.metadata.session import transaction
from s2v_tasks.metadata.sql import NOW, Repository, lock_job
from s2v_tasks.metadata.tables import ArtifactRow
from s2v_tasks.schemas.manifest import Manifest

_MAX_DONOR_JOBS = 3  # more than one, because objects of a job may be lost


class ArtifactRepository(Repository):
    """Artifacts of all jobs."""

    def record(self, manifest: Manifest) -> None:
        """Record the outputs of a manifest."""
        with transaction(self._engine) as connection:
            lock_job(connection, manifest.job_id)
            for artifact in manifest.outputs.values():
                values = {
                    "job_id": manifest.job_id,
                    "step": manifest.step,
                    "fingerprint": manifest.fingerprint,
                    "sha256": artifact.sha256,
                    "size_bytes": artifact.size_bytes,
                }
                statement = insert(ArtifactRow).values(key=artifact.key, **values)
                connection.execute(
                    statement.on_conflict_do_update(index_elements=["key"], set_={**values, "updated_at": NOW})
                )

    def jobs_with_conditions(self, fingerprint: str) -> list[str]:
        """Return the ids of jobs whose conditions have this fingerprint, the latest first."""
        statement = (
            sa
            .select(ArtifactRow.job_id)
            .where(ArtifactRow.fingerprint == fingerprint, ArtifactRow.step == CONDITIONS.step)
            .order_by(ArtifactRow.updated_at.desc())
            .limit(_MAX_DONOR_JOBS)
        )
        with transaction(self._engine) as connection:
            return list(connection.execute(statement).scalars())
