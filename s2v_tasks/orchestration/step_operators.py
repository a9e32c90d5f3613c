"""Operators that run one step as a local process, and the choice between process and pod."""

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from s2v_tasks.orchestration.approval import ask, settle, wanted_approval
from s2v_tasks.orchestration.operator_links import LINKS_OF_STEP
from s2v_tasks.orchestration.retry_policy import is_final, retries, working_time
from s2v_tasks.orchestration.step_commands import (
    StepFailedError,
    StepProcess,
    first_failed_task,
    job_id_of,
    record_failure,
    step_arguments,
)
from s2v_tasks.schemas.job import JobStatus
from s2v_tasks.schemas.steps import CLOSE_JOB, PUBLISH, Step
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.orchestration.pod_failures import PodFailure


class StepOperator(BaseOperator):  # type: ignore[misc]
    """Runs `s2v <step>` for the job of this DAG run.

    Its log is the step's stderr, its XCom the step's result (or the one value `result_key` of it). Bad input, bad
    configuration and wrong usage fail the task finally; other failures, also killed processes, are retried.
    """

    template_fields = ("clip",)
    ui_color: ClassVar[str] = "#e8eefc"

    def __init__(
        self,
        *,
        step: Step,
        clip: Any = None,
        result_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(execution_timeout=working_time(step), **kwargs)
        self.step = step
        self.clip = clip
        self.result_key = result_key
        self.job_id = ""  # known when the task runs
        self.operator_extra_links = LINKS_OF_STEP.get(step, ())
        self._process: StepProcess | None = None

    def pre_execute(self, context: Any) -> None:
        """Set the timeout for the number of clips of this task, which is known just before it runs."""
        self.execution_timeout = working_time(self.step, self.clip)

    def execute(self, context: Context) -> Any:
        """Run the step; AirflowFailException if there is no further retry, AirflowException otherwise."""
        self.job_id = job_id_of(context)
        self._process = StepProcess(self.command(context), self.log.info)
        try:
            result = self._process.run()
        except StepFailedError as failure:
            raise failed_try(self, context, failure) from None
        for asset in self.outlets:
            context["outlet_events"][asset].extra = result
        return result[self.result_key] if self.result_key else result

    def on_kill(self) -> None:
        """End the step with its task."""
        if self._process is not None:
            self._process.terminate()

    def command(self, context: Any) -> list[str]:
        """Return the argument list of the step."""
        return [sys.executable, *step_arguments(self.step, context, self.clip)]


def failed_try(task: Any, context: Context, failure: "StepFailedError | PodFailure") -> AirflowException:
    """Store the reason of a failure unless the step has; return the exception that ends this try or the whole task."""
    if not failure.reported_by_step:
        record_failure(task.step, context, task.clip, failure.message, task.log.info)
    give_up = is_final(failure.fault, context)
    return (AirflowFailException if give_up else AirflowException)(failure.message)


class CloseJobOperator(StepOperator):
    """Runs `s2v close-job` and fails with the job's reason unless the job succeeded.

    Airflow takes the outcome of a run from its last task. Without this failure a cancelled run would be a success,
    because Airflow marks tasks that have not started as skipped.
    """

    def execute(self, context: Context) -> Any:
        """Close the job; AirflowFailException unless it succeeded."""
        result = super().execute(context)
        if result["status"] != JobStatus.SUCCEEDED:
            raise AirflowFailException(f"Job {result['job_id']} {result['status']}: {result['reason']}")
        return result

    def command(self, context: Any) -> list[str]:
        """Return the argument list of the step, with the failed task as the fallback reason."""
        failed = first_failed_task(self.dag_id, context["run_id"])
        return super().command(context) + (["--failed-task", failed] if failed else [])


class PublishOperator(StepOperator):
    """Runs `s2v publish`. If the job needs an approval, it first waits for the approval of the video."""

    def execute(self, context: Context) -> Any:
        """Publish the video, or wait until it is approved."""
        self.job_id = job_id_of(context)
        if wanted_approval(context) != "none":
            ask(self, context, None)
        return super().execute(context)

    def decided(self, context: Context, event: dict[str, Any]) -> Any:
        """Publish the approved video; AirflowFailException after a rejection."""
        settle(self, context, None, event)
        return super().execute(context)


_OPERATORS: dict[Step, type[StepOperator]] = {PUBLISH: PublishOperator, CLOSE_JOB: CloseJobOperator}
# One slot for each pod. Its definition (docker/setup-databases.sh) counts deferred tasks: those whose pods run.
GPU_POOL = "gpu"


def step_task(step: Step, **kwargs: Any) -> BaseOperator:
    """Return the task of a step: it runs in an Airflow worker, or in a pod if pods are configured and it is heavy.

    The operator is chosen while the DAG is parsed. A DAG with a wrong configuration therefore shows an import error
    before it can be triggered.
    """
    kwargs.setdefault("task_id", step.name)
    settings = load_settings()
    if settings.execution == "kubernetes":
        # Imported here, because loading the operator takes a second in each parse of the DAG.
        from s2v_tasks.orchestration import pods

        if step.is_heavy:
            return pods.StepPodOperator(step=step, pool=GPU_POOL, **retries(step.pod_retries), **kwargs)
        if step == CLOSE_JOB:
            return pods.CloseJobOfPodsOperator(step=step, **retries(), **kwargs)
    elif step.is_heavy:
        # All runs share the GPUs of the workers. A pool is not used, because it may not exist on a single machine.
        kwargs["max_active_tis_per_dag"] = settings.local_renders
    operator = _OPERATORS.get(step, StepOperator)
    return operator(step=step, **retries(), **kwargs)
