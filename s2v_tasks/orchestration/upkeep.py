"""The daily housekeeping as a task: Airflow tells which runs are gone, the command does the rest."""

from typing import Any

from airflow.sdk import BaseOperator, Context

from s2v_tasks.orchestration.doors import is_gone, run_command
from s2v_tasks.settings import load_settings


class HousekeepingOperator(BaseOperator):  # type: ignore[misc]
    """Runs `s2v housekeeping`.

    A run that somebody triggers obeys the field `dry_run` of its form, a scheduled one `S2V_HOUSEKEEPING_APPLY`.
    """

    ui_color = "#f2f0e6"

    def execute(self, context: Context) -> dict[str, Any]:
        """The numbers of what was done, or would be done; AirflowException when the command failed."""
        run_ids = run_command(self, "silent-runs")["run_ids"]
        gone = [argument for run_id in run_ids if is_gone(run_id) for argument in ("--gone-run", run_id)]
        scheduled = context["dag_run"].run_type == "scheduled"
        apply = load_settings().housekeeping_apply if scheduled else not context["params"]["dry_run"]
        return run_command(self, "housekeeping", "--apply" if apply else "--dry-run", *gone)
