"""The context of a step, and everything around its work: logs, events, the recorded reason of a failure."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

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
from s2v_tasks.schemas.manifest import Artifact, Manifest
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.schemas.steps import CLOSE_JOB, PLAN_CLIPS, RENDER_CLIP, STAGE_INPUTS, Step
from s2v_tasks.scratch import scratch_folder
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.artifacts import ArtifactStore, Build, Produced, Work
from s2v_tasks.storage.client import without_account
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.webhooks.delivery import STEP_SECONDS, deliver_due

T = TypeVar("T")
_WRITES = frozenset({"put_bytes", "upload", "copy", "delete"})  # the methods of a store by which steps change objects


@dataclass(frozen=True)
class StepContext:
    """One job with its stores; calls to S3 and to the metadata store are repeated during an outage."""

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
        """Return the scratch folder, which exists from its first use to the end of the step."""
        return self.until_closed.enter_context(scratch_folder(self.settings.work_dir, self.job_id))

    @cached_property
    def began_at(self) -> datetime:
        """Return the time, by the database, at which the step began: `run_step` reads it first."""
        return self.metadata.now()

    def request(self) -> Request:
        """Return the request; TransientError until stage_inputs has stored it."""
        data = self.store.find_bytes(self.layout.request)
        return parse_request(json.loads(_existing(data, self.layout.request, STAGE_INPUTS.command)))

    def plan(self) -> Plan:
        """Return the plan; TransientError until plan_clips has stored it."""
        data = self.store.find_bytes(self.layout.plan)
        return Plan.model_validate_json(_existing(data, self.layout.plan, PLAN_CLIPS.command))

    def manifest(self, key: str, made_by: Step) -> Manifest:
        """Return the manifest at `key`; TransientError until step `made_by` has written it."""
        return _existing(self.artifacts.read_manifest(key), key, made_by.command)

    def clip_manifest(self, clip_index: int) -> Manifest:
        """Return the manifest of a clip; TransientError until the clip is rendered."""
        key = self.layout.clip_manifest(clip_index)
        return _existing(self.artifacts.read_manifest(key), key, f"{RENDER_CLIP.command} --clip-index {clip_index}")

    def withdraw_result(self, *, by_clip: bool = False) -> None:
        """Let an ended job run again, and delete its result, which is about to be replaced.

        `by_clip`: see `JobRepository.start`. TransientError if the job has ended or was started again since the step
        began: another process may have taken the place of this one, which has waited for a service meanwhile. A result
        is deleted only if it existed before `start`: the process may wait in the deletion, too.
        """
        exists = self.store.exists(self.layout.result)
        self.metadata.jobs.start(self.job_id, by_clip=by_clip, began_at=self.began_at)
        if exists:
            self.store.delete(self.layout.result)

    def produce(self, work: Work, build: Build) -> Produced:
        """Reuse the outputs of `work` or build them, and record them; the result is withdrawn before they are built."""
        by_clip = work.clip_index is not None
        produced = self.artifacts.produce(work, build, begin=lambda: self.withdraw_result(by_clip=by_clip))
        self.metadata.artifacts.record(produced.manifest)
        return produced


def check_made_from(made: Manifest, inputs: dict[str, Artifact], made_by: Step) -> None:
    """Raise PermanentError unless an artifact was made from these inputs.

    A process of an earlier start, which Airflow has lost, may store its artifact after that of this start. Another try
    of the step that reads it changes nothing.
    """
    expected = {name: artifact.sha256 for name, artifact in inputs.items()}
    if {name: artifact.sha256 for name, artifact in made.inputs.items()} != expected:
        raise made_from_others(made, made_by)


def made_from_others(made: Manifest, made_by: Step) -> PermanentError:
    """Return the error for an artifact that was made from other inputs than those of this start of the job."""
    return PermanentError(
        f"The outputs of {made_by.name} of job {made.job_id} were made from other inputs: expected those of this "
        f"start of the job. An earlier start may have stored them late. Start the job again with `s2v retry "
        f"{made.job_id}`; without Airflow, run `s2v {made_by.command}` again."
    )


def _existing(found: T | None, key: str, command: str) -> T:
    """Return the content of the object at `key`; TransientError, which names the command that writes it, for None."""
    if found is None:
        raise TransientError(
            f"{key} is missing: run `s2v {command}` for this job first, or wait until it has finished. In Airflow, "
            "start the job again with `s2v retry`."
        )
    return found


@contextmanager
def tolerated(event: str) -> Iterator[None]:
    """Log an error of the database instead of raising it: the render or the reason of a failure is more important."""
    try:
        with tried_once():
            yield
    except S2VError as error:
        log.get_logger().warning(event, error=str(error))


@contextmanager
def open_context(job_id: str, settings: Settings, *, by_clip: bool = False) -> Iterator[StepContext]:
    """Open the context of a job; its scratch folder and connections are closed at the end.

    Before each write to S3, also after an outage, the step asks if it is late: see `JobRepository.refuse_late`. S3 can
    not make a write depend on that, so a pause between the two is not covered. `by_clip`: a clip is stored also after
    its start has failed; the next start waits for it.
    """

    def refuse_late(method: str) -> None:
        if method in _WRITES and not by_clip:
            context.metadata.jobs.refuse_late(job_id, context.began_at)

    layout = JobLayout(job_id)
    policy = RetryPolicy(settings.retry_seconds)
    store = retried(ObjectStore.from_settings(settings), "S3", policy, refuse_late)
    metadata = MetadataStore.from_settings(settings)
    with ExitStack() as until_closed:
        until_closed.callback(metadata.close)
        context = StepContext(
            job_id=job_id,
            settings=settings,
            layout=layout,
            store=store,
            artifacts=ArtifactStore(store, settings.work_dir),
            metadata=retried(metadata, "PostgreSQL", policy),
            retry_policy=policy,
            until_closed=until_closed,
        )
        yield context


def run_step(
    body: Callable[..., dict[str, Any]], *, step: Step, job_id: str, clip_index: int | None = None, **arguments: Any
) -> dict[str, Any]:
    """Run one step and record its outcome.

    A PermanentError or a cancellation ends the job and becomes its reason in the metadata store. After any other error
    the job stays running, because another try may follow; close_job ends it if none does.
    """
    settings = load_settings()
    of_clip = {} if clip_index is None else {"clip_index": clip_index}
    log.bind(job_id=job_id, step=step.name, **of_clip)
    logger = log.get_logger()
    logger.info("settings", **_loggable(settings))
    with open_context(job_id, settings, by_clip=step == RENDER_CLIP) as context:
        started = time.monotonic()
        try:
            _ = context.began_at  # read now
            with _until_cancelled(context, step, arguments.get("run_id")):
                result = body(context, **arguments, **of_clip)
        except Exception as raised:
            error = of_local_file(raised) or raised
            logger.error(JobEvent.STEP_FAILED, error=str(error), kind=type(error).__name__)
            if isinstance(error, JobTakenError):
                _record_refusal(context, arguments.get("run_id"), error)
            else:
                _record_failure(context, step, clip_index, error)
            _notify(context)
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
        _notify(context)
        return result


def _loggable(settings: Settings) -> dict[str, Any]:
    """Return the settings that differ from their defaults, without accounts and secrets."""
    values = settings.model_dump(mode="json", exclude_defaults=True, exclude={"s3_access_key_id"})  # secrets are masked
    return {name: without_account(value) if isinstance(value, str) else value for name, value in values.items()}


def _notify(context: StepContext) -> None:
    """Send the pending messages of the job; failed messages are sent again by the DAG of notifications."""
    with tolerated("notifications_not_delivered"):
        deliver_due(context.metadata, context.settings, job_id=context.job_id, seconds=STEP_SECONDS)


@contextmanager
def _until_cancelled(context: StepContext, step: Step, run_id: str | None) -> Iterator[None]:
    """End the step when its job is cancelled; the first step of a new start resets an earlier cancellation."""
    if step == CLOSE_JOB:  # close_job also records the end of a cancelled job
        yield
        return
    if step == STAGE_INPUTS:
        context.metadata.jobs.clear_cancel(context.job_id, run_id)
    refuse_cancelled(context.metadata, context.job_id)
    with cancellable(context.job_id, context.settings):
        yield


def _record_refusal(context: StepContext, run_id: str | None, error: JobTakenError) -> None:
    """Record that another request for the job was refused; the job is unchanged."""
    detail = {"error": str(error), "dag_run_id": run_id}
    error.is_recorded = True  # nobody may store it as a failure of the job
    with tolerated("refusal_not_recorded"):
        context.metadata.events.record(context.job_id, event=JobEvent.REQUEST_REFUSED, detail=detail)


def _record_failure(context: StepContext, step: Step, clip_index: int | None, error: Exception) -> None:
    """Record the failure; an error of the database is only logged, so that the failure itself is raised."""
    try:
        context.metadata.events.record(
            context.job_id,
            step=step.name,
            event=JobEvent.STEP_FAILED,
            clip_index=clip_index,
            detail={"error": str(error), "exit_code": getattr(error, "exit_code", 1)},
        )
        if isinstance(error, S2VError):
            error.is_recorded = True
        if isinstance(error, JobCancelledError):
            context.metadata.jobs.cancel(context.job_id, began_at=context.began_at)
        elif isinstance(error, PermanentError):
            context.metadata.jobs.fail(context.job_id, f"{step.name}: {error}", began_at=context.began_at)
    except S2VError as second:
        log.get_logger().error("failure_not_recorded", error=str(second))
