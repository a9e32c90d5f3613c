"""Actions of people who may change runs: new job, cancel, retry, rerun. Each leaves an event with the user's name."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, HTTPException, Query
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from s2v_tasks.errors import PermanentError
from s2v_tasks.metadata.tables import Job
from s2v_tasks.schemas.job import JobStatus, RestartableStatus, check_job_id, is_job_id
from s2v_tasks.schemas.preset import find_preset, load_presets, prefilled_request
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.schemas.rerun import changes_something, job_id_of_request, rerun_job_id, rerun_request
from s2v_tasks.settings import config_dir
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.web.access import User, may_change, may_start
from s2v_tasks.web.estimates import PlanSummary, estimate
from s2v_tasks.web.job_page import stored_plan
from s2v_tasks.web.pages import page
from s2v_tasks.web.runs import end_runs, new_start_of, start_run
from s2v_tasks.web.services import KnownJob, Services, SharedServices, leave_event
from s2v_tasks.web.wording import check_first_clip, request_rows

router = APIRouter()
Fields = Annotated[dict[str, Any], Body()]
# Fields that belong to the original job and are not copied.
_NOT_COPIED = ("parent_job_id", "from_clip", "webhook_url", "job_id")
# Fields that the form shows; a copy keeps the others as they are.
_SHOWN = frozenset({
    "image_uri", "audio_uri", "prompt", "preset", "labels", "size", "sample_steps", "sample_guide_scale",
    "infer_frames", "num_clip", "base_seed", "continuity", "quality", "max_retakes", "approval", "max_cost",
})  # fmt: skip
_PLACEHOLDER = "not needed for a plan"


class Rerun(BaseModel):
    """Changes of a rerun; fields that are left out stay those of the earlier job."""

    model_config = ConfigDict(extra="forbid")

    from_clip: int = Field(ge=0)
    prompt: str | None = None
    preset: str | None = None
    base_seed: int | None = None
    sample_steps: int | None = None
    sample_guide_scale: float | None = None


@router.get("/new", dependencies=[Depends(may_start)])
def new_job(
    request: HttpRequest, services: SharedServices, copied: Annotated[str, Query(alias="from", max_length=63)] = ""
) -> Response:
    """Return the form of a new job, filled with the request of the job that the address names, or of the demo."""
    folder, fields = config_dir(services.settings), {}
    if is_job_id(copied) and (job := services.metadata.jobs.get(copied)) is not None:
        fields = {name: value for name, value in (job.request or {}).items() if value is not None}
        fields = {name: value for name, value in fields.items() if name not in _NOT_COPIED}
    shown = fields if copied else prefilled_request(services.settings)
    given = shown.get("labels")
    labels = given if isinstance(given, dict) else {}  # a refused request may hold anything
    others = {name: value for name, value in shown.items() if name not in _SHOWN}
    return page(
        request,
        "new.html",
        presets=load_presets(folder),
        fields=shown,
        titles={name: field.title for name, field in Request.model_fields.items()},
        labels=" ".join(f"{name}={value}" for name, value in labels.items()),
        others=others,
        kept=[title for title, _ in request_rows(others)],
        copied=copied if fields else "",
        is_demo=not copied and "image_uri" in shown,
    )


@router.post("/new/plan", dependencies=[Depends(may_start)])
def plan_job(fields: Fields, services: SharedServices) -> PlanSummary:
    """Return the plan and the cost of a new job; nothing is stored."""
    return estimate(services, parse_request({"prompt": _PLACEHOLDER} | _given(fields)))


@router.post("/new/start", dependencies=[Depends(may_start)])
def start_job(fields: Fields, services: SharedServices, user: User) -> Response:
    """Start a new job. Equal fields make the same job, which is started once."""
    given = _given(fields)
    job_id = given.pop("job_id", None)
    request = parse_request(given)
    if job_id is None:
        job_id = job_id_of_request(request.audio_uri.rpartition("/")[2].rpartition(".")[0], request)
    return _start(services, check_job_id(str(job_id)), request, user, "submitted this video")


@router.post("/job/{job_id}/cancel", dependencies=[Depends(may_change)])
def cancel_job(job: KnownJob, services: SharedServices, user: User) -> Response:
    """Cancel a job: its steps stop, and its finished clips are kept. The page shows the end some seconds later.

    If it has ended and waits to start again, only the new start is cancelled.
    """
    if not services.metadata.jobs.is_cancellable(job.job_id):
        if (new_start := new_start_of(job)) is None:
            raise HTTPException(409, f"Job {job.job_id} has {job.status}: there is nothing to cancel.")
        ended = end_runs(job.job_id, new_start)
        leave_event(services, job.job_id, user, "cancelled the new start of this video")
        return JSONResponse({"job_id": job.job_id, "ended_runs": ended}, 202)
    leave_event(services, job.job_id, user, "cancelled this video")
    services.metadata.jobs.request_cancel(job.job_id)
    ended = end_runs(job.job_id)
    if job.status == JobStatus.QUEUED and job.dag_run_id is None and not ended:
        services.metadata.jobs.cancel(job.job_id)  # it waits in the queue: no step of it can report the end
    return JSONResponse({"job_id": job.job_id, "ended_runs": ended}, 202)


@router.post("/job/{job_id}/retry", dependencies=[Depends(may_start)])
def retry_job(job: KnownJob, services: SharedServices, user: User) -> Response:
    """Start a job again that failed or was cancelled; finished clips are reused."""
    if job.status not in list(RestartableStatus):
        raise HTTPException(409, f"Job {job.job_id} is {job.status}: expected a job that failed or was cancelled.")
    request = parse_request({name: value for name, value in (job.request or {}).items() if value is not None})
    return _start(services, job.job_id, request, user, "started this video again")


@router.post("/job/{job_id}/rerun", dependencies=[Depends(may_start)])
def rerun_job(job: KnownJob, changes: Rerun, services: SharedServices, user: User) -> Response:
    """Start a new job that keeps the clips before `from_clip` and renders the others with changed fields."""
    plan = stored_plan(services, job)
    if plan is None:
        raise HTTPException(409, f"Job {job.job_id} has no plan: expected a job that was planned.")
    check_first_clip(changes.from_clip, plan.num_clip - 1)
    earlier = _stored_request(services, job)
    fields = changes.model_dump(exclude_none=True, exclude={"from_clip"})
    if "preset" in fields:
        find_preset(load_presets(config_dir(services.settings)), fields["preset"])
    if not changes_something(earlier, plan, fields, changes.from_clip):
        raise PermanentError("Nothing is changed: give another prompt, preset, seed, steps or guidance scale.")
    request = rerun_request(job.job_id, earlier, fields, changes.from_clip)
    job_id = rerun_job_id(job.job_id, request)
    return _start(services, job_id, request, user, f"made this video from clip {changes.from_clip + 1} of {job.job_id}")


def _start(services: Services, job_id: str, request: Request, user: Any, action: str) -> Response:
    services.metadata.jobs.check_request(job_id, request.model_dump(exclude_defaults=True), given_only=True)
    started = start_run(job_id, request, user.get_name())
    if started.is_new:
        leave_event(services, job_id, user, action)
    elif (
        (job := services.metadata.jobs.get(job_id)) and job.status in list(RestartableStatus) and not new_start_of(job)
    ):
        raise HTTPException(409, f"The earlier start of {job_id} has not ended in Airflow: try again in some seconds.")
    answer = {"job_id": job_id, "run_id": started.run_id, "started": started.is_new}
    return JSONResponse(answer | {"dag_is_paused": started.dag_is_paused}, 201 if started.is_new else 200)


def _stored_request(services: Services, job: Job) -> Request:
    data = services.store.find_bytes(JobLayout(job.job_id).request)
    if data is None:
        raise HTTPException(409, f"Job {job.job_id} has no stored request: its first step never ended.")
    return parse_request(json.loads(data))


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a form that are filled."""
    return {name: value for name, value in fields.items() if value not in (None, "")}
