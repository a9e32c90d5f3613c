"""The daily housekeeping as a task: Airflow tells which runs are gone, the command does the rest."""

from typing import Any

from airflow.sdk import BaseOperator, Context

from s2v_tasks.orchestration.doors import DAG_OF_A_JOB, run_command
from s2v_tasks.settings import load_settings

_ACTIVE = ["queued", "running"]


class HousekeepingOperator(BaseOperator):  # type: ignore[misc]
    """Runs `s2v housekeeping`.

    A run that somebody triggers obeys the field `dry_run` of its form, a scheduled one `S2V_HOUSEKEEPING_APPLY`.
    """

    ui_color = "#f2f0e6"

    def execute(self, context: Context) -> dict[str, Any]:
        """The numbers of what was done, or would be done; AirflowException when the command failed."""
        run_ids = run_command(self, "silent-runs")["run_ids"]
        gone = [argument for run_id in run_ids if _is_gone(run_id) for argument in ("--gone-run", run_id)]
        scheduled = context["dag_run"].run_type == "scheduled"
        apply = load_settings().housekeeping_apply if scheduled else not context["params"]["dry_run"]
        return run_command(self, "housekeeping", "--apply" if apply else "--dry-run", *gone)


def _is_gone(run_id: str) -> bool:
    """Whether the run of a job ended or does not exist."""
    # The runtime of a running task: a parse of the DAG does without it and the many libraries that it loads.
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return not RuntimeTaskInstance.get_dr_count(dag_id=DAG_OF_A_JOB, run_ids=[run_id], states=_ACTIVE)
