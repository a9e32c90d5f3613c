"""The gallery: pages of videos with filters, and the poll that keeps the shown ones current."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response

from s2v_tasks.metadata.gallery import PAGE_SIZE, Cursor, JobFilter
from s2v_tasks.schemas.job import JobStatus, Source, is_job_id, job_id_of_run
from s2v_tasks.schemas.steps import JOB_DAG
from s2v_tasks.web.access import UserRights
from s2v_tasks.web.pages import page
from s2v_tasks.web.polls import json_with_etag
from s2v_tasks.web.runs import find_conf, with_new_starts
from s2v_tasks.web.services import SharedServices

MAX_TEXT = 200
router = APIRouter()
Text = Annotated[str, Query(max_length=MAX_TEXT)]


@router.get("/videos")
def gallery(
    request: Request,
    services: SharedServices,
    rights: UserRights,
    status: Annotated[str, Query(max_length=20)] = "",
    source: Annotated[str, Query(max_length=20)] = "",
    label: Text = "",
    text: Text = "",
    after: Text = "",
) -> Response:
    """Return one page of videos, newest first."""
    chosen = JobFilter(
        status=status if status in list(JobStatus) else None,
        source=source if source in list(Source) else None,
        label=_label(label),
        text=text.strip().replace("\0", "") or None,
    )
    found = services.metadata.gallery.page(chosen, Cursor.parse(after) if after else None)
    shown = {"status": chosen.status or "", "source": chosen.source or "", "label": label, "text": text}
    query = {name: value for name, value in shown.items() if value}
    return page(
        request,
        "gallery.html",
        cards=with_new_starts(found.cards),
        next_query=urlencode(query | {"after": str(found.next)}) if found.next else None,
        shown=shown,
        is_filtered=bool(query),
        is_first=not after,
        statuses=list(JobStatus),
        sources=list(Source),
        rights=rights,
    )


@router.get("/videos/changes.json")
def changes(
    request: Request, services: SharedServices, jobs: Annotated[str, Query(max_length=64 * PAGE_SIZE)] = ""
) -> Response:
    """Return the state of the jobs that a page shows, 304 if nothing has changed."""
    job_ids = [job_id for job_id in jobs.split(",")[:PAGE_SIZE] if is_job_id(job_id)]
    return json_with_etag(request, services.states.of(job_ids))


@router.get("/videos/of-run")
def of_run(
    request: Request,
    services: SharedServices,
    dag_id: Text,
    run_id: Annotated[str, Query(max_length=300, pattern=r"^[^\x00]*$")],
) -> Response:
    """Redirect to the page of the job of a DAG run; the tab of a run shows it."""
    if dag_id != JOB_DAG:
        return page(request, "no_video.html", run_id=None)
    job_id = services.metadata.gallery.job_of_run(run_id)
    if job_id is None:
        conf = find_conf(run_id)
        if conf is None:
            raise HTTPException(404, "Airflow has no such run.")
        job_id = job_id_of_run(run_id, conf.get("job_id"))
        if not services.metadata.gallery.cards([job_id]):
            return page(request, "no_video.html", run_id=run_id)
    return RedirectResponse(f"../job/{job_id}", 303)


def _label(text: str) -> tuple[str, str] | None:
    name, equals, value = text.partition("=")
    return (name.strip(), value.strip()) if equals and name.strip() else None
