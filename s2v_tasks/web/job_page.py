"""The page of one job: player, timeline of its clips, plan, cost, events, and the poll that keeps it current."""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

from s2v_tasks.metadata.tables import Attempt, Clip, Job
from s2v_tasks.schemas.job import ClipStatus, JobStatus, RestartableStatus
from s2v_tasks.schemas.plan import FPS, ClipPlan, Plan
from s2v_tasks.schemas.preset import load_presets
from s2v_tasks.settings import config_dir
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.web.access import UserRights
from s2v_tasks.web.approvals import given_answer
from s2v_tasks.web.media_files import video_address
from s2v_tasks.web.pages import money, page
from s2v_tasks.web.polls import card_state, json_with_etag
from s2v_tasks.web.runs import with_new_starts
from s2v_tasks.web.services import JobId, KnownJob, Services, SharedServices
from s2v_tasks.web.wording import event_rows, request_rows

router = APIRouter(prefix="/job/{job_id}")


@dataclass(frozen=True)
class ClipRow:
    """One clip as the page shows it; frames are half open. `starts_chain`: it starts again from the picture."""

    index: int
    status: str
    is_ready: bool
    start_frame: int
    end_frame: int
    starts_chain: bool
    seed: int | None
    attempts: int
    step: int
    num_steps: int
    render_seconds: float | None
    mfu: float | None
    cost: str
    rendered_by: str | None
    version: str
    num_takes: int
    verdict: str  # good, warn, fail; empty where the clip was not measured
    findings: tuple[str, ...]
    lip_sync_lag_ms: float | None

    @property
    def num_frames(self) -> int:
        """Return the number of frames."""
        return self.end_frame - self.start_frame


@router.get("")
def job_page(request: Request, job: KnownJob, services: SharedServices, rights: UserRights) -> Response:
    """Return the page of a job."""
    plan = stored_plan(services, job)
    card = with_new_starts(services.metadata.gallery.cards([job.job_id]))[0]
    starts_again = job.has_ended and not card.has_ended
    parent = services.metadata.jobs.get(job.parent_job_id) if job.parent_job_id else None
    return page(
        request,
        "job.html",
        job=job,
        card=card,
        state=card_state(card),
        version=job.events[-1].id if job.events else 0,
        plan=plan,
        fps=FPS,
        shown_speech=_shown_speech(plan),
        prompt=(job.request or {}).get("prompt") or "",
        clips=clip_rows(job, plan),
        has_inputs=any(artifact.key == JobLayout(job.job_id).image for artifact in job.artifacts),
        has_video=video_address(job, services) is not None,
        has_report=any(artifact.key == JobLayout(job.job_id).report for artifact in job.artifacts),
        parent=parent,
        parent_has_video=parent is not None and video_address(parent, services) is not None,
        parent_clips={clip.clip_index for clip in parent.clips if _is_ready(clip)} if parent else set(),
        fields=request_rows(job.request or {}),
        events=event_rows(job.events),
        starts_again=starts_again,
        is_waiting=card.status == JobStatus.QUEUED,
        is_being_cancelled=bool(job.cancel_requested_at) and not job.has_ended,
        approval=job.waiting_approval,
        answer=given_answer(job.waiting_approval) if job.waiting_approval else None,
        next_job_id=_next_job_id(job),
        presets=load_presets(config_dir(services.settings)),
        is_cancellable=starts_again or services.metadata.jobs.is_cancellable(job.job_id),
        is_restartable=card.status in list(RestartableStatus),
        rights=rights,
    )


@router.get("/state.json")
def state(request: Request, job_id: JobId, services: SharedServices) -> Response:
    """Return what changes while a job runs, 304 if nothing has changed. `version` changes with each event."""
    states, versions = services.states.of([job_id]), services.versions.of([job_id])
    if job_id not in states:
        raise HTTPException(404, f"Job {job_id} does not exist.")
    return json_with_etag(request, states[job_id] | {"version": versions[job_id]})


def stored_plan(services: Services, job: Job) -> Plan | None:
    """Return the plan of a job; None before it is planned."""
    data = None if job.num_clip is None else services.store.find_bytes(JobLayout(job.job_id).plan)
    return None if data is None else Plan.model_validate_json(data)


def _shown_speech(plan: Plan | None) -> float:
    """Return the part of the speech that the video has; that of a preview is less than 1."""
    return min(float(plan.num_frames / FPS / plan.speech.duration_seconds), 1.0) if plan else 1.0


def _next_job_id(job: Job) -> str | None:
    """Return the job that renders a rejected job again; None if there is none."""
    last = job.approvals[-1] if job.approvals else None
    return last.next_job_id if last and job.status == JobStatus.CANCELLED else None


def clip_rows(job: Job, plan: Plan | None) -> list[ClipRow]:
    """Return the clips of a job with the cost of all their attempts."""
    planned = {clip.clip_index: clip for clip in plan.clips} if plan else {}
    return [_clip_row(job, clip, planned.get(clip.clip_index)) for clip in job.clips]


def _clip_row(job: Job, clip: Clip, planned: ClipPlan | None) -> ClipRow:
    facts = clip.clip_facts
    attempts = [attempt for attempt in job.attempts if attempt.clip_index == clip.clip_index]
    return ClipRow(
        index=clip.clip_index,
        status=clip.status,
        is_ready=_is_ready(clip),
        start_frame=clip.start_frame,
        end_frame=clip.end_frame,
        starts_chain=planned is not None and planned.predecessor is None and clip.clip_index > 0,
        seed=planned.seed if planned else None,
        attempts=clip.attempts,
        step=clip.progress_step or 0,
        num_steps=clip.progress_steps or 0,
        render_seconds=clip.render_seconds,
        mfu=facts.mfu if facts else None,
        cost=_cost(job, attempts),
        rendered_by=clip.source_job_id,
        version=(clip.fingerprint or "")[:12],
        **_quality(clip),
    )


def _quality(clip: Clip) -> dict[str, Any]:
    """Return the measures of the take of a clip that is kept."""
    record = clip.takes
    take = record.kept_take if record else None
    if record is None or take is None or take.measured is None:
        num_takes = len(record.takes) if record else 0
        return {"num_takes": num_takes, "verdict": "", "findings": (), "lip_sync_lag_ms": None}
    lip_sync = take.measured.lip_sync
    return {
        "num_takes": len(record.takes),
        "verdict": "fail" if take.fails else "warn" if take.findings else "good",
        "findings": tuple(finding.message for finding in take.findings),
        "lip_sync_lag_ms": lip_sync.lag_ms if lip_sync else None,
    }


def _is_ready(clip: Clip) -> bool:
    return clip.status == ClipStatus.SUCCEEDED


def _cost(job: Job, attempts: list[Attempt]) -> str:
    if job.cost_per_gpu_hour is None or not attempts:
        return ""
    seconds: Any = sum(attempt.gpu_seconds or 0 for attempt in attempts)
    return money(seconds * job.cost_per_gpu_hour / 3600, job.currency)
