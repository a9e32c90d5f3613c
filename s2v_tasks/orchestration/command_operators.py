"""Operators that run `s2v` commands for many jobs: drop folder, batches, housekeeping, notifications."""

import sys
from collections.abc import Mapping
from typing import Any

from airflow.sdk import (
    Asset,
    AssetOrTimeSchedule,
    AssetWatcher,
    BaseOperator,
    BaseSensorOperator,
    Context,
    CronTriggerTimetable,
)
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowRuntimeError, ErrorType

from s2v_tasks.orchestration.step_commands import CLI, StepFailedError, StepProcess, first_failed_task
from s2v_tasks.schemas.steps import JOB_DAG
from s2v_tasks.settings import load_settings

_ACTIVE = ["queued", "running"]
# Answers of Airflow that refuse the request itself. All other answers have other causes: Airflow is busy, the DAG is
# unknown or has an error, a permission is missing.
_REFUSED_FOR_GOOD = {413, 422}
_REFUSED_FOR_ITS_VALUES = (400, "value_error")
_LONGEST_REASON = 500  # characters: Airflow repeats the whole value
_NOTED_AT_ONCE = 100  # after a kill at most this many runs are requested again, without effect


class CommandOperator(BaseOperator):  # type: ignore[misc]
    """Runs `s2v <arguments>`; its log is the command's stderr, its XCom the JSON result."""

    template_fields = ("arguments",)
    ui_color = "#e8f6ee"

    def __init__(self, *, arguments: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments

    def execute(self, context: Context) -> Any:
        """Run the command; AirflowFailException if a retry is useless, AirflowException otherwise."""
        return run_command(self, *self.arguments)


class StartJobsOperator(BaseOperator):  # type: ignore[misc]
    """Starts a DAG run for each waiting job that may start now.

    The run id is derived from the job id, so that a job cannot have two runs. With the trigger rule `all_done` jobs
    also start if the sweep before it has failed, for example because of one folder that cannot be moved.
    """

    ui_color = "#e8f6ee"

    def execute(self, context: Context) -> dict[str, int]:
        """Start the jobs; AirflowException, after all were tried, if one could not be started.

        AirflowFailException if another task of the run has failed, because Airflow takes the outcome of a run from its
        last task.
        """
        counts = start_waiting_jobs(self)
        if failed := first_failed_task(self.dag_id, context["run_id"]):
            raise AirflowFailException(f"The waiting jobs were started, but the task {failed} failed: see its log.")
        return counts


class BatchSensor(BaseSensorOperator):  # type: ignore[misc]
    """Waits until all jobs of a batch have ended; each poll starts the waiting jobs that may start now."""

    template_fields = ("batch_id",)
    ui_color = "#e8f6ee"

    def __init__(self, *, batch_id: str, **kwargs: Any) -> None:
        # A wait can last days, with more transient errors than retries: they are logged, and the sensor polls again.
        super().__init__(silent_fail=True, **kwargs)
        self.batch_id = batch_id

    def poke(self, context: Context) -> bool:
        """Return True if all jobs of the batch have ended."""
        state = run_command(self, "batch-state", self.batch_id)
        self.log.info("%s", state["jobs"])
        if not state["ended"]:
            start_waiting_jobs(self)
        return bool(state["ended"])


def run_command(task: Any, *arguments: str) -> dict[str, Any]:
    """Run `s2v <arguments>` as a child of this task and return its result."""
    command = StepProcess([sys.executable, *CLI, *arguments], task.log.info)
    try:
        return command.run()
    except StepFailedError as failure:
        raise (AirflowFailException if failure.fault == "permanent" else AirflowException)(failure.message) from None


def start_waiting_jobs(task: Any) -> dict[str, int]:
    """Start a run for each waiting job that may start now; return the numbers of started, refused and waiting jobs."""
    ready = _next_jobs(task)
    num_started, problems, refused = 0, [], {}
    for begin in range(0, len(ready["jobs"]), _NOTED_AT_ONCE):
        started = []
        for job in ready["jobs"][begin : begin + _NOTED_AT_ONCE]:
            try:
                start_run(job)
            except AirflowRuntimeError as error:  # the other jobs are still started
                if reason := _refusal(error.error.detail or {}):
                    refused[job["job_id"]] = reason
                else:
                    problems.append(f"{job['job_id']}: {error}")
            else:
                started.append(job["job_id"])
        if started:
            run_command(task, "mark-started", *started)
        num_started += len(started)
    for job_id, reason in refused.items():
        task.log.warning("%s: %s", job_id, reason)
        run_command(task, "refuse-job", job_id, "--reason", reason)
    if problems:
        raise AirflowException(f"{len(problems)} jobs could not be started, the first is {problems[0]}")
    num_waiting = ready["waiting"] - num_started - len(refused)
    return {"started": num_started, "refused": len(refused), "waiting": num_waiting}


def _next_jobs(task: Any) -> dict[str, Any]:
    """Return the jobs to start now, after closing the jobs whose runs are gone."""
    ready = run_command(task, "next-jobs")
    gone = [run_id for run_id in ready["silent_runs"] if is_gone(run_id)]
    if not gone:
        return ready
    task.log.warning("Runs that are gone: %s", ", ".join(gone))
    run_command(task, "close-lost", "--", *gone)  # users choose run ids, which may begin with a dash
    return run_command(task, "next-jobs")


def is_gone(run_id: str) -> bool:
    """Return True if the run of a job ended or does not exist."""
    # The runtime of a running task: a parse of the DAG does without it and the many libraries that it loads.
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return not RuntimeTaskInstance.get_dr_count(dag_id=JOB_DAG, run_ids=[run_id], states=_ACTIVE)


def _refusal(detail: Mapping[str, Any]) -> str | None:
    """Return the reason if Airflow can never start a run with this request; None if a later try may succeed.

    `detail` comes from the supervisor: the status and the answer of the API server, with its own `detail`.
    """
    status, answer = detail.get("status_code"), (detail.get("detail") or {}).get("detail")
    reason, message = (answer.get("reason"), answer.get("message")) if isinstance(answer, dict) else (None, answer)
    if status in _REFUSED_FOR_GOOD or (status, reason) == _REFUSED_FOR_ITS_VALUES:
        sentence = str(message or detail.get("message")).partition("\n")[0]  # without the schema that Airflow adds
        if len(sentence) > _LONGEST_REASON:
            sentence = f"{sentence[:_LONGEST_REASON]} ..."
        return f"Airflow refuses its run: {sentence}. Correct the request and submit it again."
    return None


def start_run(job: dict[str, Any]) -> None:
    """Create the run of a job unless it exists.

    This sends the same message as TriggerDagRunOperator. A mapped instance of that operator would cost one process per
    job.
    """
    # The runtime of a running task: a parse of the DAG does without it and the many libraries that it loads.
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun

    answer = task_runner.SUPERVISOR_COMMS.send(
        TriggerDagRun(dag_id=JOB_DAG, run_id=job["run_id"], conf=job["request"] | {"job_id": job["job_id"]})
    )
    if isinstance(answer, ErrorResponse) and answer.error != ErrorType.DAGRUN_ALREADY_EXISTS:
        raise AirflowRuntimeError(answer)


_EVERY_MINUTE = "* * * * *"
_POLL_SECONDS = 5


def drop_schedule() -> Any:
    """Return the schedule of the drop folder: every minute, and at each event of its queue if there is one."""
    settings = load_settings()
    if settings.drop_queue_url is None:
        return CronTriggerTimetable(_EVERY_MINUTE, timezone="UTC")

    # Needs the extra `queue`, which is installed only if a queue is used.
    from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger

    trigger = MessageQueueTrigger(
        scheme="sqs", sqs_queue=settings.drop_queue_url, waiter_delay=_POLL_SECONDS, region_name=settings.s3_region
    )
    drops = Asset("s2v_drops", watchers=[AssetWatcher(name="s2v_drop_queue", trigger=trigger)])
    return AssetOrTimeSchedule(timetable=CronTriggerTimetable(_EVERY_MINUTE, timezone="UTC"), assets=[drops])


class HousekeepingOperator(BaseOperator):  # type: ignore[misc]
    """Runs `s2v housekeeping`.

    A manual run uses the field `dry_run` of its form, a scheduled run `S2V_HOUSEKEEPING_APPLY`.
    """

    ui_color = "#f2f0e6"

    def execute(self, context: Context) -> dict[str, Any]:
        """Return the numbers of (planned) changes; AirflowException if the command failed."""
        run_ids = run_command(self, "silent-runs")["run_ids"]
        gone = [argument for run_id in run_ids if is_gone(run_id) for argument in ("--gone-run", run_id)]
        scheduled = context["dag_run"].run_type == "scheduled"
        apply = load_settings().housekeeping_apply if scheduled else not context["params"]["dry_run"]
        return run_command(self, "housekeeping", "--apply" if apply else "--dry-run", *gone)
