"""# Housekeeping

Every night it finds what nobody needs any more, and what was lost:

| What | When |
|---|---|
| superseded clips, saved states of interrupted clips | `S2V_RETENTION_DAYS` after the end of their job (1) |
| folders in `accepted/` and `rejected/` of the drop folder | after `S2V_RETENTION_DAYS` (2) |
| unfinished uploads in parts below `jobs/` and `uploads/` | after a day, once their job has ended: aborted (3) |
| jobs whose run ended or is gone | after 15 minutes without a sign of life: closed, their attempts as lost |
| rows without object, objects without row or job, other sizes | told, never mended |

(1) unless a rerun that has not ended needs it; (2) unless a job that runs or a published video names their files;
(3) those of `S2V_OUTPUT_URI`, which others may write to as well, are left to a lifecycle rule of its bucket.
Inputs, plans, clips and results of a job stay, also of a failed one: its next start reuses them.

Scheduled runs only list, until `S2V_HOUSEKEEPING_APPLY` is true. A run that you trigger does what its form says, and
the form opens with **dry run**. The log of the task has how much there is of each kind and the first hundred of it; the
whole listing, object by object: `s2v housekeeping --dry-run --json`.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param

from s2v_tasks.orchestration.notifiers import failure_notifiers
from s2v_tasks.orchestration.upkeep import HousekeepingOperator
from s2v_tasks.schemas.steps import HOUSEKEEPING_DAG

with DAG(
    HOUSEKEEPING_DAG,
    description="Delete what nobody needs any more, close what nobody works on, compare S3 and PostgreSQL.",
    doc_md=__doc__,
    schedule="17 3 * * *",
    catchup=False,
    on_failure_callback=failure_notifiers(),
    max_active_runs=1,
    params={
        "dry_run": Param(
            True, type="boolean", title="Dry run", description="Only list what would be deleted, aborted and closed."
        )
    },
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1), "execution_timeout": timedelta(hours=2)},
    tags=["video", "operations"],
):
    HousekeepingOperator(task_id="housekeeping")
