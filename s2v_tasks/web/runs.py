"""DAG runs of jobs, with Airflow's own database session: this runs inside the API server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from airflow.api.common.trigger_dag import trigger_dag
from airflow.api_fastapi.core_api.datamodels.dag_run import DagRunMutableStates
from airflow.api_fastapi.core_api.services.public.dag_run import patch_dag_run_state
from airflow.exceptions import DagNotFound, DagRunAlreadyExists
from airflow.models.dag import DagModel
from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType

from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.metadata.gallery import Card
from s2v_tasks.metadata.tables import Job
from s2v_tasks.schemas.job import START_SEPARATOR, JobStatus, RestartableStatus, job_id_of_run
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.starts import start_once
from s2v_tasks.schemas.steps import JOB_DAG, STAGE_INPUTS

_ACTIVE = (DagRunState.QUEUED, DagRunState.RUNNING)


@dataclass(frozen=True)
class StartedRun:
    """The run of a job. `is_new`: it was started now. `dag_is_paused`: it waits until the DAG is unpaused."""

    run_id: str
    is_new: bool
    dag_is_paused: bool


def find_conf(run_id: str) -> dict[str, Any] | None:
    """Return the configuration of a run; None if there is no such run."""
    found = _find(run_id)
    return None if found is None else found[1]


def start_run(job_id: str, request: Request, user: str) -> StartedRun:
    """Start a run of a job as `start_once` does; PermanentError when Airflow refuses the fields."""
    conf = request.model_dump(exclude_defaults=True) | {"job_id": job_id}
    run_id, state = start_once(job_id, conf, _find, lambda run_id: _trigger(run_id, conf, user))
    return StartedRun(run_id, state is None, _is_paused())


def with_new_starts(cards: Sequence[Card]) -> list[Card]:
    """Return the cards; a job that has ended and waits to start again is shown as queued."""
    jobs = {card.job_id: card.dag_run_id for card in cards if card.status in list(RestartableStatus)}
    starts = new_starts(jobs)
    return [replace(card, status=JobStatus.QUEUED) if card.job_id in starts else card for card in cards]


def new_starts(jobs: Mapping[str, str | None]) -> dict[str, str]:
    """Return the runs that will start jobs again that have ended, by job: their first step has not begun.

    `jobs`: the job ids with the latest run of each job. That run is a new start after it was cleared in Airflow.
    """
    if not jobs:
        return {}
    named = (
        sa.or_(DagRun.run_id.in_((job_id, run_id)), DagRun.run_id.startswith(job_id + START_SEPARATOR, autoescape=True))
        for job_id, run_id in jobs.items()
    )
    # A run that a person ends stays active until its teardown task has run.
    is_ended = sa.exists().where(
        TaskInstance.dag_id == JOB_DAG,
        TaskInstance.run_id == DagRun.run_id,
        TaskInstance.task_id == STAGE_INPUTS.name,
        TaskInstance.state == TaskInstanceState.SKIPPED,
    )
    active = sa.select(DagRun.run_id, DagRun.state, DagRun.conf).where(
        DagRun.dag_id == JOB_DAG, DagRun.state.in_(_ACTIVE), sa.or_(*named), ~is_ended
    )
    found = {}
    with create_session() as session:
        for run_id, state, conf in session.execute(active):
            job_id = job_id_of_run(run_id, (conf or {}).get("job_id"))
            if job_id in jobs and (run_id != jobs[job_id] or state == DagRunState.QUEUED):
                found[job_id] = str(run_id)
    return found


def new_start_of(job: Job) -> str | None:
    """Return the run that will start a job again that has ended; None if there is none."""
    return new_starts({job.job_id: job.dag_run_id}).get(job.job_id) if job.status in list(RestartableStatus) else None


def end_runs(job_id: str, run_id: str | None = None) -> list[str]:
    """End the runs of a job that have not ended, as failed; return their ids. Teardown tasks still run.

    `run_id`: only this one.
    """
    ended = []
    with create_session() as session:
        active = sa.select(DagRun).where(DagRun.dag_id == JOB_DAG, DagRun.state.in_(_ACTIVE))
        for run in session.scalars(active).unique():
            if job_id_of_run(run.run_id, (run.conf or {}).get("job_id")) != job_id:
                continue
            if run_id not in {None, run.run_id}:
                continue
            dag = DBDagBag().get_dag_for_run(run, session=session)
            if dag is None:
                raise ConfigurationError(f"Airflow has no DAG {JOB_DAG!r} any more: set its DAGs folder to dags/.")
            patch_dag_run_state(dag=dag, dag_run=run, state=DagRunMutableStates.FAILED, session=session)
            ended.append(str(run.run_id))
    return ended


def _find(run_id: str) -> tuple[str, dict[str, Any]] | None:
    """Return state and configuration of a run."""
    statement = sa.select(DagRun.state, DagRun.conf).where(DagRun.dag_id == JOB_DAG, DagRun.run_id == run_id)
    with create_session() as session:
        row = session.execute(statement).one_or_none()
    return None if row is None else (str(row[0]), dict(row[1] or {}))


def _trigger(run_id: str, conf: dict[str, Any], user: str) -> bool:
    """Start a run; return False if there is one with this id."""
    try:
        trigger_dag(JOB_DAG, triggered_by=DagRunTriggeredByType.UI, triggering_user_name=user, run_id=run_id, conf=conf)
    except DagRunAlreadyExists:
        return False
    except DagNotFound:
        raise ConfigurationError(f"Airflow has no DAG {JOB_DAG!r}: set its DAGs folder to dags/.") from None
    except ValueError as error:  # ParamValidationError is one; its message ends with the schema
        raise PermanentError(f"Airflow refuses the request: {str(error).partition(chr(10))[0]}") from None
    return True


def _is_paused() -> bool:
    with create_session() as session:
        return bool(session.scalar(sa.select(DagModel.is_paused).where(DagModel.dag_id == JOB_DAG)))
