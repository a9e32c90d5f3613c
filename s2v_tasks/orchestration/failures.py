"""Why a step or its task failed, for those that died before they could say it: put on record in their place."""

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from s2v_tasks.orchestration.commands import CLI, job_id_of
from s2v_tasks.orchestration.process import StepFailedError, StepProcess
from s2v_tasks.schemas.steps import CLIP_WAIT_TASK, RECORD_FAILURE, Step

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
        log_line(f"The reason could not be put on record: {failure.message}")


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
