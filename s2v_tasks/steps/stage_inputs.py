"""stage_inputs: check the request, fetch its files once, and normalise them.

Writes request.json, inputs/{image.png, audio.<ext>, audio_16k.wav, pose.mp4?} and inputs/manifest.json.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.log import get_logger
from s2v_tasks.media.image import normalise_image
from s2v_tasks.media.speech import SPEECH_SAMPLE_RATE, load_waveform, normalise_speech
from s2v_tasks.media.uploaded_video import normalise_pose
from s2v_tasks.perception.preflight import listen, look
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.runtime.inheritance import inherit_inputs, inherited_plan, parent_request
from s2v_tasks.runtime.requirements import check_requirements
from s2v_tasks.schemas.catalogue import load_catalogue
from s2v_tasks.schemas.job import Source
from s2v_tasks.schemas.manifest import Artifact, StagedFacts, fingerprint
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_json, parse_request
from s2v_tasks.schemas.steps import STAGE_INPUTS
from s2v_tasks.settings import config_dir
from s2v_tasks.storage.artifacts import Built, OutputFile, Work
from s2v_tasks.storage.inputs import find_input, plain_name, same_name
from s2v_tasks.storage.locations import printable
from s2v_tasks.storage.objects import file_sha256

REVISION = 3  # increase it when the same sources are normalised differently


def run(ctx: StepContext, *, request_json: str, run_id: str | None = None) -> dict[str, Any]:
    """Stage the inputs; `run_id` is the DAG run of the job, if it has one."""
    request = _accept(ctx, request_json, run_id)
    check_requirements(ctx.settings, ctx.store)
    if request.parent_job_id is not None:
        if inherited_plan(ctx, request) is None:
            parent_request(ctx, request)
            _keep_request(ctx, request)
            inherit_inputs(ctx, request.parent_job_id)
        return {"reused": True}
    uris = {"image": request.image_uri, "audio": request.audio_uri}
    if request.pose_video_uri:
        uris["pose"] = request.pose_video_uri
    uris = {name: find_input(ctx.store, uri) or uri for name, uri in uris.items()}
    gone = _gone_since(ctx, uris)
    sources = _fetch(ctx, {name: uri for name, uri in uris.items() if name not in gone})
    _keep_request(ctx, request)
    inputs = gone | {
        name: Artifact(key=uri, sha256=file_sha256(path), size_bytes=path.stat().st_size)
        for name, (uri, path) in sources.items()
    }

    def build(folder: Path) -> Built:
        # Another source has changed or a copy is lost as well: fetching reports the missing source.
        sources.update(_fetch(ctx, {name: uris[name] for name in gone}))
        return _normalise(ctx, request, {name: path for name, (_, path) in sources.items()}, folder)

    made_from = fingerprint(STAGE_INPUTS.name, REVISION, {name: item.sha256 for name, item in inputs.items()})
    work = Work(STAGE_INPUTS, ctx.job_id, ctx.layout.input_manifest, made_from, inputs)
    return {"reused": ctx.produce(work, build).reused}


def _normalise(ctx: StepContext, request: Request, sources: dict[str, Path], folder: Path) -> Built:
    """Return the normalised files and their facts."""
    layout, longest = ctx.layout, ctx.settings.max_audio_seconds
    image, speech, pose = folder / "image.png", folder / "audio_16k.wav", folder / "pose.mp4"
    picture = normalise_image(sources["image"], image)
    sound = normalise_speech(sources["audio"], speech, max_duration_seconds=longest)
    outputs = {
        "image": OutputFile(image, layout.image, "image/png"),
        "audio": OutputFile(sources["audio"], layout.audio(_extension(request.audio_uri)), "application/octet-stream"),
        "audio_16k": OutputFile(speech, layout.audio_16k, "audio/wav"),
    }
    staged: dict[str, Any] = {
        "image": {**asdict(picture), "faces": look(image)},
        "speech": {**asdict(sound), "sound": listen(load_waveform(speech), SPEECH_SAMPLE_RATE)},
    }
    if "pose" in sources:
        staged["pose"] = {"num_frames": normalise_pose(sources["pose"], pose, max_duration_seconds=longest)}
        outputs["pose"] = OutputFile(pose, layout.pose, "video/mp4")
    return Built(outputs, StagedFacts.model_validate(staged))


def _accept(ctx: StepContext, request_json: str, run_id: str | None) -> Request:
    """Return the valid request; the job is recorded first, so that a refusal becomes its reason."""
    try:
        data = parse_json(request_json)
    except ValueError as error:
        _queue(ctx, {"text": request_json[:2000]}, run_id)
        raise PermanentError(
            f'The request is not JSON ({error}): expected an object such as {{"prompt": ...}}.'
        ) from error
    _queue(ctx, data if isinstance(data, dict) else {"request": data}, run_id)
    if not isinstance(data, dict):
        raise PermanentError(f"The request is a JSON {type(data).__name__}: expected an object of request fields.")
    request = parse_request({name: value for name, value in data.items() if value is not None})
    load_catalogue(config_dir(ctx.settings)).check(request)
    ctx.metadata.jobs.start(ctx.job_id, began_at=ctx.began_at)
    return request


def _queue(ctx: StepContext, data: dict[str, Any], run_id: str | None) -> None:
    source = source_of(data, run_id)
    ctx.metadata.jobs.enqueue(ctx.job_id, data, source=source, dag_run_id=run_id, began_at=ctx.began_at)


def source_of(data: dict[str, Any], run_id: str | None) -> Source:
    """Return the source of a job outside the queue: runs of the form have a name from Airflow, programs choose it."""
    if data.get("parent_job_id"):
        return Source.RERUN
    if run_id is None:
        return Source.CLI
    return Source.UI if run_id.startswith("manual__") else Source.API


def _keep_request(ctx: StepContext, request: Request) -> None:
    """Store request.json; a changed request deletes the result and the plan of the earlier one."""
    data = request.model_dump_json(indent=2).encode()
    if ctx.store.find_bytes(ctx.layout.request) != data:
        ctx.withdraw_result()
        ctx.store.delete(ctx.layout.plan)
        ctx.store.put_bytes(ctx.layout.request, data, "application/json")


def _gone_since(ctx: StepContext, uris: dict[str, str]) -> dict[str, Artifact]:
    """Return the recorded facts of staged sources that no longer exist.

    Users or housekeeping may delete a source after it is staged.
    """
    manifest = ctx.artifacts.read_manifest(ctx.layout.input_manifest)
    staged = manifest.inputs if manifest else {}
    gone = {
        name: staged[name]
        for name, uri in uris.items()
        if name in staged and same_name(staged[name].key, uri) and not ctx.store.exists(uri)
    }
    if gone:
        get_logger().warning("sources_are_gone", uris=[printable(uris[name]) for name in gone])
    return gone


def _fetch(ctx: StepContext, uris: dict[str, str]) -> dict[str, tuple[str, Path]]:
    """Download the sources to scratch, where messages name them; return URI and local path by name."""
    sources = {}
    for name, uri in uris.items():
        path = ctx.work_dir / name / plain_name(uri.rpartition("/")[2])
        path.parent.mkdir()
        ctx.store.fetch_uri(uri, path, max_bytes=ctx.settings.max_input_bytes)
        sources[name] = (uri, path)
    return sources


def _extension(uri: str) -> str:
    """Return the extension of the uploaded file if it is plain, else bin."""
    suffix = Path(uri).suffix.lower().lstrip(".")
    return suffix if re.fullmatch(r"[a-z0-9]{1,5}", suffix) else "bin"
