"""Command lines of the steps, equal in a worker and in a pod, and the record of failures that a step cannot report."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from s2v_tasks.orchestration.step_process import TERMINATION_GRACE_SECONDS, StepFailedError, StepProcess
from s2v_tasks.schemas.job import job_id_of_run
from s2v_tasks.schemas.steps import CLIP_WAIT_TASK, CLOSE_JOB, RECORD_FAILURE, STAGE_INPUTS, Step
from s2v_tasks.settings import load_settings

CLI = ("-m", "s2v_tasks.cli")


def step_arguments(step: Step, context: Mapping[str, Any], clip: Mapping[str, Any] | None = None) -> list[str]:
    """Return the arguments of the Python interpreter that run `step` for the job of the run of a task.

    `clip` selects the clips of the plan that the task renders: `count` from `clip_index` on.
    """
    arguments = [*_launcher(step), *CLI, step.command, "--job-id", job_id_of(context)]
    if step == STAGE_INPUTS:
        arguments += ["--run-id", context["run_id"], "--request-json", json.dumps(request_of(context))]
    if step == CLOSE_JOB:
        since = context["dag_run"].start_date.strftime("%Y-%m-%dT%H:%M:%S%z")
        arguments += ["--since", since, "--run-id", context["run_id"]]
    if clip is not None:
        arguments += ["--clip-index", str(clip["clip_index"]), "--count", str(clip["count"])]
    return arguments


def job_id_of(context: Mapping[str, Any]) -> str:
    """Return the job of a task's run."""
    return job_id_of_run(context["run_id"], context["params"].get("job_id"))


def request_of(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a task's run: its params without the job id."""
    return {name: value for name, value in context["params"].items() if name != "job_id"}


def num_processes(step: Step) -> int:
    """Return the number of processes of `step`, each with a GPU if there are any."""
    return load_settings().nproc_per_node if step.is_distributed else 1


def _launcher(step: Step) -> list[str]:
    """Several processes are started by torchrun. One needs none: starting torchrun takes as long as importing torch."""
    processes = num_processes(step)
    if processes == 1:
        return []
    return [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "--shutdown-timeout",
        str(int(TERMINATION_GRACE_SECONDS) - 10),
    ]


_NAME = re.compile(r"(?P<task>.+?)(_(?P<map_index>\d+))?")  # a mapped task as Airflow lists it: clip.render_3


def record_failure(
    step: Step,
    context: Mapping[str, Any],
    clip: Mapping[str, Any] | None,
    reason: str,
    log_line: Callable[[str], None],
) -> None:
    """Write `reason` to the project's database, as the step would have. A database that is away costs a log line."""
    command = [sys.executable, *CLI, RECORD_FAILURE.command, "--job-id", job_id_of(context)]
    command += ["--step", step.command]
    if clip is not None:
        command += ["--clip-index", str(clip["clip_index"]), "--count", str(clip["count"])]
    try:
        StepProcess([*command, "--reason", reason], log_line).run()
    except StepFailedError as failure:
        log_line(f"The reason could not be stored: {failure.message}")


def first_failed_task(dag_id: str, run_id: str) -> str | None:
    """Return the task of a run that failed first, such as `clip.render[3]`; None when none has failed.

    Waits come last, in the order of the clips: they also fail because the clip failed that they wait for.
    """
    # The runtime of a running task: a parse of the DAG does without it and the many libraries that it loads.
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(dag_id=dag_id, run_ids=[run_id]).get(run_id, {})
    failed = []
    for name, state in states.items():
        if state == "failed" and (parts := _NAME.fullmatch(name)):
            failed.append((parts["task"] == CLIP_WAIT_TASK, int(parts["map_index"] or -1), parts["task"]))
    if not failed:
        return None
    _, map_index, task = min(failed)
    return task if map_index < 0 else f"{task}[{map_index}]"
