"""# Housekeeping

Every night it finds expired objects, orphaned jobs and mismatches between S3 and the database:

| Item | Action |
|---|---|
| superseded clips, saved states of unfinished clips | deleted `S2V_RETENTION_DAYS` after the end of their job (1) |
| folders in `accepted/` and `rejected/` of the drop folder | deleted after `S2V_RETENTION_DAYS` (2) |
| unfinished multipart uploads below `jobs/` and `uploads/` | aborted after a day, once their job has ended (3) |
| jobs whose run ended or is gone | closed 15 minutes after their last heartbeat; their attempts are lost |
| rows without object, objects without row or job, other sizes | reported, never repaired |

(1) Except objects that an unfinished rerun needs. (2) Except files of a running job or of a published video.
(3) Uploads below `S2V_OUTPUT_URI` are left to a lifecycle rule of its bucket: other systems may write there too.
Inputs, plans, clips and results of a job are kept, also of a failed job: its next start reuses them.

Scheduled runs only list, unless `S2V_HOUSEKEEPING_APPLY` is true. A triggered run follows its form, where **dry run**
is the default. The task log shows the number and the first hundred items of each kind. The full listing:
`s2v housekeeping --dry-run --json`.
"""

from datetime import timedelta

from airflow.sdk import Param, dag

from s2v_tasks.orchestration.command_operators import HousekeepingOperator
from s2v_tasks.orchestration.notifiers import failure_notifiers
from s2v_tasks.schemas.steps import HOUSEKEEPING_DAG


@dag(
    dag_id=HOUSEKEEPING_DAG,
    description="Delete expired objects, report mismatches between S3 and the database, close orphaned jobs.",
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
    tags=["s2v", "operations"],
)
def s2v_housekeeping() -> None:
    """Run `s2v housekeeping`."""
    HousekeepingOperator(task_id="housekeeping")


s2v_housekeeping()
