"""Answers to the approval that a job waits for. Airflow takes the answer and resumes the task, as it does in its UI."""

import time
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import sqlalchemy as sa
from airflow.api_fastapi.core_api.datamodels.hitl import UpdateHITLDetailPayload
from airflow.api_fastapi.core_api.routes.public.hitl import update_hitl_detail
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.sdk import timezone
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from s2v_tasks.metadata.tables import Approval, Job
from s2v_tasks.schemas.approval import APPROVE, EARLIEST_ANSWER_SECONDS, REJECT, Rejection, last_first_clip
from s2v_tasks.schemas.steps import CLIP_WAIT_TASK, JOB_DAG, PUBLISH
from s2v_tasks.web.access import User, may_answer, may_start
from s2v_tasks.web.services import KnownJob, Services, SharedServices, leave_event
from s2v_tasks.web.wording import check_first_clip

PARKING_SECONDS = 10.0 + EARLIEST_ANSWER_SECONDS
_POLL_SECONDS = 0.5

router = APIRouter(prefix="/job/{job_id}", dependencies=[Depends(may_answer)])


@dataclass(frozen=True)
class GivenAnswer:
    """An answer of a person; `approves` is False for a rejection."""

    user: str
    approves: bool


class Judged(BaseModel):
    """The subject of an approval: the index of a clip, None for the video."""

    model_config = ConfigDict(extra="forbid")

    clip_index: int | None


class RejectedPart(Rejection):
    """A rejection of a subject; `from_clip` and the other fields are those of the rerun."""

    clip_index: int | None


@router.post("/approve")
def approve(job: KnownJob, judged: Judged, services: SharedServices, user: User) -> Response:
    """Approve the clip or the video that the job waits for; the job goes on some seconds later."""
    what = _answer(job, judged.clip_index, APPROVE, {}, user)
    return _noted(services, job, user, f"approved {what}")


@router.post("/reject", dependencies=[Depends(may_start)])
def reject(job: KnownJob, rejected: RejectedPart, services: SharedServices, user: User) -> Response:
    """Reject the clip or the video: the job ends, and a rerun starts if prompt, seed or steps are changed."""
    check_first_clip(rejected.from_clip or 0, last_first_clip(rejected.clip_index, job.num_clip or 1))
    fields = rejected.model_dump(exclude={"clip_index"}, exclude_none=True)
    what = _answer(job, rejected.clip_index, REJECT, fields, user)
    return _noted(services, job, user, f"rejected {what}")


def _answer(job: Job, clip_index: int | None, option: str, fields: dict[str, Any], user: Any) -> str:
    """Send the answer to the waiting task and return its subject in words; 409 if the job waits for none."""
    if user.get_id() is None:  # Airflow cannot store the anonymous user of FAB ([fab] auth_role_public)
        raise HTTPException(403, "An answer needs a person: log in to Airflow.")
    waiting = job.waiting_approval
    if waiting is None or waiting.clip_index != clip_index:
        raise HTTPException(409, f"Job {job.job_id} does not wait for this approval: load the page again.")
    what = "the video" if clip_index is None else f"clip {clip_index + 1}"
    if _send(waiting, option, fields, user):
        return what
    if (given := given_answer(waiting)) is None:
        raise HTTPException(409, "Airflow does not ask for this approval at the moment: try again in some seconds.")
    raise HTTPException(409, f"{given.user} has already {'approved' if given.approves else 'rejected'} {what}.")


def _send(waiting: Approval, option: str, fields: dict[str, Any], user: Any) -> bool:
    """Send the answer to the waiting task; return False if it takes none, or takes another one first."""
    with create_session() as session:
        parked = _parked_task(session, waiting)
        if parked is None:
            return False
        answer = UpdateHITLDetailPayload(chosen_options=[option], params_input=fields)
        try:
            update_hitl_detail(JOB_DAG, str(waiting.dag_run_id), parked[0], answer, user, session, parked[1])
        except HTTPException as error:
            if error.status_code != HTTPStatus.CONFLICT:
                raise
            session.rollback()
            return False
    return True


def given_answer(waiting: Approval) -> GivenAnswer | None:
    """Return the answer that Airflow has and the waiting task has not recorded yet; None if there is none."""
    columns = sa.select(HITLDetail.chosen_options, HITLDetail.responded_by)
    here = (
        TaskInstance.dag_id == JOB_DAG,
        TaskInstance.run_id == waiting.dag_run_id,
        TaskInstance.task_id == _task_that_asks(waiting),
        HITLDetail.responded_at >= waiting.requested_at,
    )
    with create_session() as session:
        found = session.execute(columns.join(TaskInstance, TaskInstance.id == HITLDetail.ti_id).where(*here)).first()
    if found is None:
        return None
    return GivenAnswer((found.responded_by or {}).get("name") or "a person", found.chosen_options == [APPROVE])


def _task_that_asks(waiting: Approval) -> str:
    """Return the task that waits: `publish` for the video, `clip.wait` of the next clip for a clip."""
    return PUBLISH.name if waiting.clip_index is None else CLIP_WAIT_TASK


def _parked_task(session: Session, waiting: Approval) -> Any:
    """Return task and map index of the task that waits.

    The page shows an approval some moments before the task that asks for it is parked, and the task takes no answer at
    once. None if it takes none by then, or if it has an answer.
    """
    settled = timedelta(seconds=EARLIEST_ANSWER_SECONDS)
    query = sa.select(TaskInstance.task_id, TaskInstance.map_index).where(
        TaskInstance.dag_id == JOB_DAG,
        TaskInstance.run_id == waiting.dag_run_id,
        TaskInstance.task_id == _task_that_asks(waiting),
        TaskInstance.state == TaskInstanceState.AWAITING_INPUT,
    )
    give_up_at = time.monotonic() + PARKING_SECONDS
    while True:
        parked = session.execute(query.where(TaskInstance.updated_at <= timezone.utcnow() - settled)).one_or_none()
        if parked is not None or given_answer(waiting) is not None or time.monotonic() > give_up_at:
            return parked
        session.rollback()  # no transaction while this waits
        time.sleep(_POLL_SECONDS)


def _noted(services: Services, job: Job, user: Any, action: str) -> Response:
    leave_event(services, job.job_id, user, action)
    return JSONResponse({"job_id": job.job_id, "answer": action}, 202)
