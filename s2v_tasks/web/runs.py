"""DAG runs of jobs, with Airflow's own database session: this runs inside the API server."""

from typing import Any

import sqlalchemy as sa
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session

from s2v_tasks.schemas.steps import JOB_DAG


def find_conf(run_id: str) -> dict[str, Any] | None:
    """Return the configuration of a run; None if there is no such run."""
    statement = sa.select(DagRun.conf).where(DagRun.dag_id == JOB_DAG, DagRun.run_id == run_id)
    with create_session() as session:
        row = session.execute(statement).one_or_none()
    return None if row is None else dict(row[0] or {})
