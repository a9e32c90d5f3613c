"""plan_clips: fix the number of clips and every frame before anything is spent. Writes plan.json."""

import tempfile
from pathlib import Path
from typing import Any

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.audio import load_waveform, normalise_speech
from s2v_tasks.planning.planner import make_plan
from s2v_tasks.schemas.model_card import load_gpu_card, load_model_card
from s2v_tasks.schemas.plan import Plan, SpeechFacts
from s2v_tasks.schemas.preset import load_presets
from s2v_tasks.schemas.request import Request, parse_request
from s2v_tasks.settings import Settings, config_dir, load_settings
from s2v_tasks.steps.context import StepContext


def run(ctx: StepContext) -> dict[str, Any]:
    staged, request = ctx.manifest(ctx.layout.input_manifest, made_by="stage-inputs"), ctx.request()
    facts, wav = staged.facts, ctx.work_dir / "audio_16k.wav"
    if request.continuity == "cut":
        ctx.artifacts.fetch(staged.outputs["audio_16k"], wav)
    plan = _plan(
        ctx.settings,
        request,
        job_id=ctx.job_id,
        speech=SpeechFacts(num_samples=facts["speech"]["num_samples"], sample_rate=facts["speech"]["sample_rate"]),
        image_size=(facts["image"]["width"], facts["image"]["height"]),
        wav=wav,
    )
    data = plan.model_dump_json(indent=2).encode()
    job = ctx.ledger.job(ctx.job_id)
    stored = ctx.store.get_bytes(ctx.layout.plan) if ctx.store.exists(ctx.layout.plan) else None
    if data != stored or job is None or job.num_clip != plan.num_clip:
        ctx.ledger.job_started(ctx.job_id)
        ctx.store.delete(ctx.layout.result)
        ctx.store.put_bytes(ctx.layout.plan, data, "application/json")
        ctx.ledger.job_planned(ctx.job_id, plan)
    return {"num_frames": plan.num_frames, "warnings": list(plan.warnings), "clips": _clips(plan)}


def plan_files(image: Path, audio: Path, fields: dict[str, Any]) -> Plan:
    """The plan that local files would get, by the same checks and rules; nothing is stored."""
    from s2v_tasks.media.image import normalise_image

    settings = load_settings()
    for path in (image, audio):
        if not path.is_file():
            raise PermanentError(f"{path} is not a file: expected the picture and the speech to plan for.")
    if settings.work_dir:
        settings.work_dir.mkdir(parents=True, exist_ok=True)
    unstored = {"image_uri": "s3://local/image", "audio_uri": "s3://local/audio", "prompt": "not needed for a plan"}
    request = parse_request(unstored | fields)
    with tempfile.TemporaryDirectory(prefix="s2v-plan-", dir=settings.work_dir) as folder:
        wav = Path(folder) / "audio.wav"
        picture = normalise_image(image, Path(folder) / "image.png")
        speech = normalise_speech(audio, wav, max_duration_seconds=settings.max_audio_seconds)
        return _plan(
            settings,
            request,
            job_id="plan-only",
            speech=SpeechFacts(num_samples=speech.num_samples, sample_rate=speech.sample_rate),
            image_size=(picture.width, picture.height),
            wav=wav,
        )


def _plan(
    settings: Settings, request: Request, *, job_id: str, speech: SpeechFacts, image_size: tuple[int, int], wav: Path
) -> Plan:
    """The plan by this configuration; `wav`, the speech at 16 kHz, is read only for a request that may be cut."""
    folder = config_dir(settings)
    return make_plan(
        request,
        job_id=job_id,
        presets=load_presets(folder),
        speech=speech,
        image_size=image_size,
        model=load_model_card(folder, settings.model),
        gpu=load_gpu_card(folder, settings.gpu),
        max_clips=settings.max_clips,
        samples=load_waveform(wav) if request.continuity == "cut" else None,
    )


def _clips(plan: Plan) -> list[dict[str, Any]]:
    """What Airflow needs to know of each clip: small enough for XCom."""
    return [
        {
            "clip_index": clip.clip_index,
            "chain_index": clip.chain_index,
            "predecessor": clip.predecessor,
            "label": f"clip {clip.clip_index + 1}/{plan.num_clip} frames {clip.start_frame}..{clip.end_frame}",
        }
        for clip in plan.clips
    ]
