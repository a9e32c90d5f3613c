"""The command line of each step: the same words whether a worker runs them or a pod."""

import json
from collections.abc import Mapping
from typing import Any

from s2v_tasks.orchestration.process import TERMINATION_GRACE_SECONDS
from s2v_tasks.schemas.job import job_id_of_run
from s2v_tasks.schemas.steps import CLOSE_JOB, STAGE_INPUTS, Step
from s2v_tasks.settings import load_settings

CLI = ("-m", "s2v_tasks.cli")


def step_arguments(step: Step, context: Mapping[str, Any], clip: Mapping[str, Any] | None = None) -> list[str]:
    """What follows the Python interpreter to run `step` for the job of a task's run.

    `clip` tells which clips of the plan the task renders: `count` from `clip_index` on.
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
    """How many processes, and GPUs where there are any, work on `step`."""
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
