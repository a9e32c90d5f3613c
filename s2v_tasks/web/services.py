"""Connections that all requests of this process share: metadata store and object store."""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Path

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.metadata.tables import Job
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import JOB_ID_PATTERN
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.storage.s3_errors import ObjectMissingError
from s2v_tasks.web.polls import Recent, card_state
from s2v_tasks.web.runs import with_new_starts


@dataclass(frozen=True)
class Services:
    """The services of this installation. No request is sent before their first use."""

    settings: Settings
    metadata: MetadataStore
    store: ObjectStore
    public_store: ObjectStore
    states: Recent[dict[str, Any]]  # by job
    versions: Recent[int]  # by job: the id of its latest event


@cache
def services() -> Services:
    """Return the services of this process."""
    settings = load_settings()
    metadata = MetadataStore.from_settings(settings)
    jobs = metadata.gallery
    return Services(
        settings=settings,
        metadata=metadata,
        store=ObjectStore.from_settings(settings),
        public_store=ObjectStore.seen_by_browsers(settings),
        states=Recent(lambda job_ids: {card.job_id: card_state(card) for card in with_new_starts(jobs.cards(job_ids))}),
        versions=Recent(lambda job_ids: {job_id: jobs.last_event_id(job_id) for job_id in job_ids}),
    )


def media_origin(settings: Settings) -> str | None:
    """Return the origin of the object store for browsers; None if the API server forwards the bytes."""
    if settings.video_delivery == "proxy":
        return None
    endpoint = settings.s3_public_endpoint_url or settings.s3_endpoint_url
    if endpoint is None:
        return f"https://*.s3.{settings.s3_region}.amazonaws.com"
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def known_job(job_id: "JobId", services: "SharedServices") -> Job:
    """Return the job of the path with all its records; ObjectMissingError where there is none."""
    job = services.metadata.jobs.get(job_id)
    if job is None:
        raise ObjectMissingError(f"Job {job_id} does not exist: see the list of videos.")
    return job


def leave_event(services: Services, job_id: str, user: Any, action: str) -> None:
    """Record what a person did on the page of a job."""
    services.metadata.events.record(job_id, JobEvent.USER_ACTION, detail={"user": user.get_name(), "action": action})


JobId = Annotated[str, Path(pattern=JOB_ID_PATTERN)]
SharedServices = Annotated[Services, Depends(services)]
KnownJob = Annotated[Job, Depends(known_job)]
