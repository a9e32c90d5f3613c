"""Look at the runs in the database of Airflow, and begin or end one."""

from typing import Any

import sqlalchemy as sa


def runs() -> dict[str, tuple[str, dict[str, Any], str]]:
    """Return state, configuration and user of every run in Airflow."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    columns = (DagRun.run_id, DagRun.state, DagRun.conf, DagRun.triggering_user_name)
    with create_session() as session:
        return {run_id: (str(state), conf, user) for run_id, state, conf, user in session.execute(sa.select(*columns))}


def skipped_tasks(run_id: str) -> set[str]:
    """Return the tasks of a run that will not run."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    skipped = sa.select(TaskInstance.task_id).where(TaskInstance.run_id == run_id, TaskInstance.state == "skipped")
    with create_session() as session:
        return set(session.scalars(skipped))


def begin(run_id: str) -> None:
    """Let a run begin, as the scheduler would."""
    _change(run_id, "running")


def end(run_id: str) -> None:
    """Let a run end as failed, as the scheduler would."""
    _change(run_id, "failed")


def _change(run_id: str, state: str) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(sa.update(DagRun).where(DagRun.run_id == run_id).values(state=state))
