"""Files of a job for players and pages: video, clips, speech, pictures, waveform. Content types are fixed."""

import json
import re
from typing import Annotated

from fastapi import APIRouter, Header, HTTPException, Path
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from s2v_tasks.metadata.tables import Job
from s2v_tasks.schemas.job import JobStatus
from s2v_tasks.storage.layout import JobLayout, output_video_uri
from s2v_tasks.storage.s3_errors import ObjectMissingError
from s2v_tasks.web import pictures
from s2v_tasks.web.services import JobId, KnownJob, Services, SharedServices

LINK_SECONDS = 900
_KEPT = "private, max-age=3600"
router = APIRouter(prefix="/job/{job_id}")
ByteRange = Annotated[str | None, Header(alias="range")]
KnownEtag = Annotated[str | None, Header(alias="if-none-match")]
ClipIndex = Annotated[int, Path(ge=0, lt=10_000)]
_PLAIN_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
# Downloads: name in the address → content type and end of the file name.
_DOWNLOADS = {"video": ("video/mp4", ".mp4"), "report": ("application/json", ".report.json")}
_DOWNLOADS["contact-sheet"] = ("image/jpeg", ".contact_sheet.jpg")


def video_address(job: Job, services: Services) -> str | None:
    """Return the address of the whole video: the published one, else the joined one; None before it is joined."""
    layout = JobLayout(job.job_id)
    if job.status == JobStatus.SUCCEEDED and job.video_uri:
        return output_video_uri(services.settings, job.job_id)
    if any(artifact.key == layout.muxed for artifact in job.artifacts):
        return layout.muxed
    return None


@router.get("/video.mp4")
def video(job: KnownJob, services: SharedServices, byte_range: ByteRange = None, etag: KnownEtag = None) -> Response:
    """Return the whole video, or a range of it."""
    address = video_address(job, services)
    if address is None:
        raise HTTPException(404, f"Job {job.job_id} has no video yet: play its clips.")
    return deliver(services, address, "video/mp4", byte_range, etag)


@router.get("/clips/{clip_index}.mp4")
def clip(
    job_id: JobId,
    clip_index: ClipIndex,
    services: SharedServices,
    byte_range: ByteRange = None,
    etag: KnownEtag = None,
) -> Response:
    """Return a clip, which has no sound of its own, or a range of it."""
    return deliver(services, JobLayout(job_id).clip(clip_index), "video/mp4", byte_range, etag)


@router.get("/speech.wav")
def speech(job_id: JobId, services: SharedServices, byte_range: ByteRange = None, etag: KnownEtag = None) -> Response:
    """Return the speech at 16 kHz, or a range of it."""
    return deliver(services, JobLayout(job_id).audio_16k, "audio/wav", byte_range, etag)


@router.get("/picture.png")
def picture(job_id: JobId, services: SharedServices, etag: KnownEtag = None) -> Response:
    """Return the reference picture."""
    return deliver(services, JobLayout(job_id).image, "image/png", None, etag)


@router.get("/contact-sheet.jpg")
def contact_sheet(job_id: JobId, services: SharedServices, etag: KnownEtag = None) -> Response:
    """Return the contact sheet."""
    return deliver(services, JobLayout(job_id).contact_sheet, "image/jpeg", None, etag)


@router.get("/poster.jpg")
def poster(job_id: JobId, services: SharedServices, etag: KnownEtag = None) -> Response:
    """Return a small frame of the video; the reference picture while there is none.

    The address that pages use changes (`?v=`) as soon as there is one, because browsers keep this answer.
    """
    try:
        answer = deliver(services, JobLayout(job_id).poster, "image/jpeg", None, etag, redirect=False)
    except ObjectMissingError:
        answer = reference(job_id, services)
        answer.headers["Cache-Control"] = "private, max-age=60"
        return answer
    answer.headers["Cache-Control"] = _KEPT
    return answer


@router.get("/reference.jpg")
def reference(job_id: JobId, services: SharedServices) -> Response:
    """Return a small reference picture."""
    jpeg = pictures.reference(services.store, JobLayout(job_id).image)
    return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": _KEPT})


@router.get("/waveform.json")
def waveform(job_id: JobId, services: SharedServices) -> Response:
    """Return the peaks of the speech, for drawing."""
    peaks = pictures.waveform(services.store, JobLayout(job_id).audio_16k)
    body = json.dumps(peaks, separators=(",", ":"))
    return Response(body, media_type="application/json", headers={"Cache-Control": _KEPT})


@router.get("/download/{name}")
def download(job: KnownJob, name: str, services: SharedServices) -> Response:
    """Return a file of the result as an attachment."""
    if name not in _DOWNLOADS:
        raise HTTPException(404, f"There is no such file: expected one of {', '.join(_DOWNLOADS)}.")
    layout, (kind, ending) = JobLayout(job.job_id), _DOWNLOADS[name]
    address = {"report": layout.report, "contact-sheet": layout.contact_sheet}.get(name) or video_address(job, services)
    if address is None:
        raise HTTPException(404, f"Job {job.job_id} has no video yet: play its clips.")
    answer = deliver(services, address, kind, None, None, redirect=False)
    answer.headers["Content-Disposition"] = f'attachment; filename="{job.job_id}{ending}"'
    return answer


def deliver(
    services: Services,
    address: str,
    media_type: str,
    byte_range: str | None,
    etag: str | None,
    *,
    redirect: bool = True,
) -> Response:
    """Return an object, or send the browser to it where S2V_VIDEO_DELIVERY says so."""
    if redirect and services.settings.video_delivery == "redirect":
        url = services.public_store.link(address, seconds=LINK_SECONDS)
        return RedirectResponse(url, 307, headers={"Cache-Control": "private, no-store"})
    known = etag if etag and _PLAIN_ETAG.fullmatch(etag) else None
    part = services.store.open(address, byte_range=byte_range, known_etag=known)
    headers = {"Cache-Control": "private, no-cache", "Accept-Ranges": "bytes"}
    if part.etag:
        headers["ETag"] = part.etag
    if part.content_range:
        headers["Content-Range"] = part.content_range
    if part.body is None:
        return Response(status_code=part.status, headers=headers)
    headers["Content-Length"] = str(part.size_bytes)
    return _Media(part.chunks(), part.status, headers=headers, media_type=media_type)


class _Media(StreamingResponse):
    """Media that Airflow's server does not compress again.

    It compresses no answer with an encoding. Players accept no compression and get none of this header: Firefox does
    not seek in an answer that has it, and plays only its first part.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "gzip" in Headers(scope=scope).get("accept-encoding", ""):
            self.headers["Content-Encoding"] = "identity"
        await super().__call__(scope, receive, send)
