"""plan_clips: decide all clips and frames of the video before any GPU starts. Writes plan.json."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s2v_tasks import log
from s2v_tasks.errors import PermanentError
from s2v_tasks.media.speech import SPEECH_SAMPLE_RATE, Waveform, load_waveform, normalise_speech
from s2v_tasks.perception.preflight import listen, look
from s2v_tasks.planning.clips import clips_of_processes
from s2v_tasks.planning.estimate import check_budget
from s2v_tasks.planning.installation import Installation
from s2v_tasks.planning.memory import RenderSetup, check_memory
from s2v_tasks.planning.planner import PlanInputs, make_plan
from s2v_tasks.planning.rerun import replan
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.runtime.inheritance import inherit_clips, inherited_plan, parent_plan, parent_request
from s2v_tasks.schemas.catalogue import load_catalogue
from s2v_tasks.schemas.manifest import ClipFacts, Manifest, StagedFacts, StagedImage, StagedSpeech
from s2v_tasks.schemas.model_card import load_gpu_card, load_model_card
from s2v_tasks.schemas.plan import InputFacts, Plan, SpeechFacts
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.schemas.steps import STAGE_INPUTS
from s2v_tasks.scratch import scratch_folder
from s2v_tasks.settings import Settings, config_dir, load_settings
from s2v_tasks.storage.clip_state import TakeRecords


def run(ctx: StepContext) -> dict[str, Any]:
    """Make and store the plan; return the clips in the form that Airflow needs."""
    staged, request = ctx.manifest(ctx.layout.input_manifest, STAGE_INPUTS), ctx.request()
    installation = installation_of(ctx.settings)
    if request.parent_job_id is None:
        plan = _plan_staged(ctx, request, staged, installation)
    else:
        plan = _plan_rerun(ctx, request, installation)
    data = plan.model_dump_json(indent=2).encode()
    job = ctx.metadata.jobs.get(ctx.job_id)
    if data != ctx.store.find_bytes(ctx.layout.plan) or job is None or job.num_clip != plan.num_clip:
        ctx.withdraw_result()
        ctx.metadata.jobs.record_plan(ctx.job_id, plan, began_at=ctx.began_at)
        for clip in plan.inherited:
            made = ctx.clip_manifest(clip.clip_index)
            ctx.metadata.clips.inherit(ctx.job_id, clip, facts=made.facts_as(ClipFacts))
            if measured := TakeRecords(ctx.store, ctx.layout).kept(made):
                ctx.metadata.clips.record_quality(ctx.job_id, measured.record)
        # Last: a stored plan is also in the metadata store, with its inherited clips.
        ctx.store.put_bytes(ctx.layout.plan, data, "application/json")
    return {"num_frames": plan.num_frames, "warnings": list(plan.warnings), "clips": _render_tasks(plan, request)}


def _plan_staged(ctx: StepContext, request: Request, staged: Manifest, installation: Installation) -> Plan:
    """Return the plan for the staged inputs."""
    facts, samples = staged.facts_as(StagedFacts), None
    if request.continuity == "cut":
        samples = load_waveform(ctx.artifacts.fetch(staged.outputs["audio_16k"], ctx.work_dir / "audio_16k.wav"))
    plan = make_plan(request, ctx.job_id, _plan_inputs(facts, samples), installation)
    _log_cost(plan)
    _check_limits(plan, request, installation, ctx.settings)
    return plan


def _plan_inputs(facts: StagedFacts, samples: Waveform | None) -> PlanInputs:
    speech, image = facts.speech, facts.image
    return PlanInputs(
        speech=SpeechFacts(num_samples=speech.num_samples, sample_rate=speech.sample_rate),
        image_size=(image.width, image.height),
        samples=samples,
        facts=InputFacts(
            speech_notes=speech.notes,
            speech_rms_dbfs=speech.rms_dbfs,
            pose_frames=facts.pose.num_frames if facts.pose else None,
            image_warning=image.warning,
            faces=image.faces,
            sound=speech.sound,
        ),
    )


def _plan_rerun(ctx: StepContext, request: Request, installation: Installation) -> Plan:
    """Return the plan of the parent with the changes of the request, after copying the clips that are reused.

    A plan of an earlier start stays: what it needs of the parent is copied, and the parent may have changed since. Only
    a plan for another model is made anew.
    """
    earlier_plan = inherited_plan(ctx, request)
    if earlier_plan is not None and earlier_plan.model == ctx.settings.model:
        _check_limits(earlier_plan, request, installation, ctx.settings)
        return earlier_plan
    earlier, parent = parent_request(ctx, request), parent_plan(ctx, request)
    plan = replan(parent, request, earlier, ctx.job_id, installation)
    _log_cost(plan)
    _check_limits(plan, request, installation, ctx.settings)
    return plan.model_copy(update={"inherited": inherit_clips(ctx, parent, earlier, request.from_clip or 0)})


def _log_cost(plan: Plan) -> None:
    log.get_logger().info(
        "planned",
        num_clip=plan.num_clip,
        cuts=[f"{cut.frame / plan.fps:.2f} s" for cut in plan.cuts],
        gpu_seconds=round(plan.estimate.gpu_seconds),
        longest_chain_seconds=round(plan.estimate.longest_chain_seconds),
        cost=f"{plan.estimate.cost:.4g} {plan.estimate.currency} on {plan.estimate.gpu}",
    )


def installation_of(settings: Settings) -> Installation:
    """Read the files of the configuration folder; ConfigurationError if one of them is not valid."""
    folder = config_dir(settings)
    return Installation(
        catalogue=load_catalogue(folder),
        model=load_model_card(folder, settings.model),
        gpu=load_gpu_card(folder, settings.gpu),
        max_clips=settings.max_clips,
        setup=RenderSetup.of(settings),
    )


def _check_limits(plan: Plan, request: Request, installation: Installation, settings: Settings) -> None:
    """Raise PermanentError if the plan is over budget or does not fit the GPU."""
    check_budget(plan.estimate, request, settings)
    check_memory(plan, installation.model, installation.gpu, installation.setup)


def plan_files(image: Path, audio: Path, fields: dict[str, Any], show: Callable[[Plan], None]) -> None:
    """Show the plan for local files, by the same checks and rules; nothing is stored.

    A plan over budget or too large for the GPU is shown before it is refused, because its numbers show the cause.
    """
    from s2v_tasks.media.image import normalise_image

    settings = load_settings()
    for path in (image, audio):
        if not path.is_file():
            raise PermanentError(f"{str(path)!r} is not a file: expected an image and a speech file.")
    unstored = {"image_uri": "s3://local/image", "audio_uri": "s3://local/audio", "prompt": "not needed for a plan"}
    request = parse_request(unstored | fields)
    with scratch_folder(settings.work_dir, "plan") as folder:
        png, wav = folder / "image.png", folder / "audio.wav"
        picture = normalise_image(image, png)
        speech = normalise_speech(audio, wav, max_duration_seconds=settings.max_audio_seconds)
        samples = load_waveform(wav)
        facts = StagedFacts(
            image=StagedImage(**asdict(picture), faces=look(png)),
            speech=StagedSpeech(**asdict(speech), sound=listen(samples, SPEECH_SAMPLE_RATE)),
        )
    installation = installation_of(settings)
    plan = make_plan(request, "plan-only", _plan_inputs(facts, samples), installation)
    show(plan)
    _check_limits(plan, request, installation, settings)


def _render_tasks(plan: Plan, request: Request) -> list[dict[str, Any]]:
    """Return the clips of each render task, small enough for XCom; inherited clips need no task.

    `predecessor` is the position of the previous task of the chain. `takes` is the maximum number of takes of each
    clip, for the timeout of the task.
    """
    takes = {"takes": 1 + request.max_retakes} if request.quality == "gate" else {}
    found: list[dict[str, Any]] = []
    rendered = plan.clips[len(plan.inherited) :]
    for position, clips in enumerate(clips_of_processes([clip.chain_index for clip in rendered], plan.clips_per_pod)):
        first, last = rendered[clips[0]], rendered[clips[-1]]
        number = first.clip_index + 1
        numbers = f"clip {number}" if len(clips) == 1 else f"clips {number}-{last.clip_index + 1}"
        continues = first.predecessor is not None and first.predecessor >= len(plan.inherited)
        found.append({
            "clip_index": first.clip_index,
            "count": len(clips),
            "chain_index": first.chain_index,
            "predecessor": position - 1 if continues else None,
            "label": f"{numbers}/{plan.num_clip} frames {first.start_frame}..{last.end_frame}",
            **takes,
        })
    return found
