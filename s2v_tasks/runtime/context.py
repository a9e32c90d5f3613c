"""What every step has at hand, and what happens around it: logs, events, the recorded reason of a failure."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from s2v_tasks import log
from s2v_tasks.errors import (
    JobCancelledError,
    JobTakenError,
    PermanentError,
    S2VError,
    TransientError,
    of_local_file,
)
from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.runtime.cancellation import cancellable, refuse_cancelled
from s2v_tasks.runtime.outages import RetryPolicy, retried, tried_once
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.manifest import Manifest
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.request import Request, parse_request
from s2v_tasks.schemas.steps import CLOSE_JOB, PLAN_CLIPS, RENDER_CLIP, STAGE_INPUTS, Step
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.artifacts import ArtifactStore, Build, Produced, Work
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.redaction import without_account
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.webhooks.dispatch import STEP_SECONDS, deliver_due


@dataclass(frozen=True)
class StepContext:
    """The job at hand and the places where its data are; calls to `store` and `metadata store` outlast an outage."""

    job_id: str
    settings: Settings
    layout: JobLayout
    store: ObjectStore
    artifacts: ArtifactStore
    metadata: MetadataStore
    retry_policy: RetryPolicy
    until_closed: ExitStack

    @cached_property
    def work_dir(self) -> Path:
        """Scratch: made when it is first asked for, gone when the step ends."""
        return self.until_closed.enter_context(scratch_folder(self.settings, f"s2v-{self.job_id}-"))

    def request(self) -> Request:
        return parse_request(json.loads(self._needed(self.layout.request, STAGE_INPUTS)))

    def plan(self) -> Plan:
        return Plan.model_validate_json(self._needed(self.layout.plan, PLAN_CLIPS))

    def manifest(self, key: str, made_by: Step) -> Manifest:
        """Return the manifest at `key`; TransientError until step `made_by` has written it."""
        manifest = self.artifacts.read_manifest(key)
        if manifest is None:
            raise _not_there(key, made_by.command)
        return manifest

    def clip_manifest(self, clip_index: int) -> Manifest:
        """Return the manifest of a clip; TransientError until the clip is rendered."""
        key = self.layout.clip_manifest(clip_index)
        manifest = self.artifacts.read_manifest(key)
        if manifest is None:
            raise _not_there(key, f"{RENDER_CLIP.command} --clip-index {clip_index}")
        return manifest

    def withdraw_result(self, *, by_clip: bool = False) -> None:
        """Let a job that ended run again, and delete its result: another one is about to be made.

        `by_clip`: see `JobRepository.start`.
        """
        self.metadata.jobs.start(self.job_id, by_clip=by_clip)
        self.store.delete(self.layout.result)

    def produce(self, work: Work, build: Build) -> Produced:
        """Reuse the outputs of `work` or build them, and record them; the result is withdrawn before they are built."""
        by_clip = work.clip_index is not None
        produced = self.artifacts.produce(work, build, begin=lambda: self.withdraw_result(by_clip=by_clip))
        self.metadata.artifacts.record(produced.manifest)
        return produced

    def _needed(self, key: str, made_by: Step) -> bytes:
        if not self.store.exists(key):
            raise _not_there(key, made_by.command)
        return self.store.get_bytes(key)


def _not_there(key: str, command: str) -> TransientError:
    return TransientError(f"{key} is not there: run `s2v {command}` for this job first, or wait until it has finished.")


@contextmanager
def tolerated(event: str) -> Iterator[None]:
    """A database that is away costs a note, not the hours of a render nor the true reason of its failure."""
    try:
        with tried_once():
            yield
    except S2VError as error:
        log.get_logger().warning(event, error=str(error))


@contextmanager
def open_context(job_id: str, settings: Settings) -> Iterator[StepContext]:
    """A context whose scratch folder and connections are gone at the end."""
    layout = JobLayout(job_id)
    policy = RetryPolicy(settings.retry_seconds)
    store = retried(ObjectStore.from_settings(settings), "S3", policy)
    metadata = MetadataStore.from_settings(settings)
    with ExitStack() as until_closed:
        until_closed.callback(metadata.close)
        yield StepContext(
            job_id=job_id,
            settings=settings,
            layout=layout,
            store=store,
            artifacts=ArtifactStore(store, settings.work_dir),
            metadata=retried(metadata, "PostgreSQL", policy),
            retry_policy=policy,
            until_closed=until_closed,
        )


@contextmanager
def scratch_folder(settings: Settings, prefix: str) -> Iterator[Path]:
    """A folder for a while, below S2V_WORK_DIR where that is set."""
    if settings.work_dir:
        settings.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=settings.work_dir) as folder:
        yield Path(folder)


def run_step(
    body: Callable[..., dict[str, Any]], *, step: Step, job_id: str, clip_index: int | None = None, **arguments: Any
) -> dict[str, Any]:
    """Run one step and record how it went.

    A PermanentError ends the job: its sentence becomes the job's reason in Postgres; so does a person who cancels it.
    Anything else leaves the job running, because another attempt may follow; `close-job` settles it when none does.
    """
    settings = load_settings()
    log.bind(job_id=job_id, step=step.name, **({} if clip_index is None else {"clip_index": clip_index}))
    logger = log.get_logger()
    logger.info("settings", **_shown(settings))
    if clip_index is not None:
        arguments["clip_index"] = clip_index
    with open_context(job_id, settings) as context:
        started = time.monotonic()
        try:
            with _until_cancelled(context, step, arguments.get("run_id")):
                result = body(context, **arguments)
        except Exception as raised:
            error = of_local_file(raised) or raised
            logger.error(JobEvent.STEP_FAILED, error=str(error), kind=type(error).__name__)
            if isinstance(error, JobTakenError):
                _record_refusal(context, arguments.get("run_id"), error)
            else:
                _record_failure(context, step, clip_index, error)
            _tell(context)
            if error is raised:
                raise
            raise error from raised
        seconds = round(time.monotonic() - started, 3)
        context.metadata.events.record(
            job_id,
            step=step.name,
            event=JobEvent.STEP_FINISHED,
            clip_index=clip_index,
            detail={"seconds": seconds} | result,
        )
        logger.info(JobEvent.STEP_FINISHED, seconds=seconds, **result)
        _tell(context)
        return result


def _shown(settings: Settings) -> dict[str, Any]:
    """The settings that differ from their defaults, without what belongs to an account."""
    values = settings.model_dump(mode="json", exclude_defaults=True, exclude={"s3_access_key_id"})  # masks secrets
    return {name: without_account(value) if isinstance(value, str) else value for name, value in values.items()}


def _tell(context: StepContext) -> None:
    """Send what the webhook of the job waits for; what does not get through is swept up later."""
    with tolerated("notifications_not_delivered"):
        deliver_due(context.metadata, context.settings, job_id=context.job_id, seconds=STEP_SECONDS)


@contextmanager
def _until_cancelled(context: StepContext, step: Step, run_id: str | None) -> Iterator[None]:
    """Ends the step when its job is cancelled; the first step of a new start forgets that an earlier one was."""
    if step == CLOSE_JOB:  # it tells how a cancelled job ended
        yield
        return
    if step == STAGE_INPUTS:
        context.metadata.jobs.clear_cancel(context.job_id, run_id)
    refuse_cancelled(context.metadata, context.job_id)
    with cancellable(context.job_id, context.settings):
        yield


def _record_refusal(context: StepContext, run_id: str | None, error: JobTakenError) -> None:
    """Note on the job that another request was refused: it is no failure of the job, which goes on."""
    detail = {"error": str(error), "dag_run_id": run_id}
    with tolerated("refusal_not_recorded"):
        context.metadata.events.record(context.job_id, event=JobEvent.REQUEST_REFUSED, detail=detail)


def _record_failure(context: StepContext, step: Step, clip_index: int | None, error: Exception) -> None:
    """Write the failure down; a database that is away must not hide the error itself."""
    try:
        context.metadata.events.record(
            context.job_id,
            step=step.name,
            event=JobEvent.STEP_FAILED,
            clip_index=clip_index,
            detail={"error": str(error), "exit_code": getattr(error, "exit_code", 1)},
        )
        if isinstance(error, JobCancelledError):
            context.metadata.jobs.cancel(context.job_id)
        elif isinstance(error, PermanentError):
            context.metadata.jobs.fail(context.job_id, f"{step.name}: {error}")
    except S2VError as second:
        log.get_logger().error("failure_not_recorded", error=str(second))
