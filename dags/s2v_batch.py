"""# Batches

Makes one video for each row of a manifest in S3: JSON lines (`.jsonl`) or CSV, up to 10,000 rows. A row has the fields
of a request and an optional `id`. File names without `s3://` are relative to the manifest. In a CSV an empty cell is an
omitted field, and a column `labels.team` is the label `team`.

```json
{"id": "welcome", "image_uri": "anna.png", "audio_uri": "welcome.wav", "prompt": "A woman speaks.", "preset": "quick"}
```

* `start` checks every row and its files, like `s2v check-batch URI`. If one row is invalid, no job starts and
  `<manifest>.errors.csv` lists all errors with the line number of their row. Otherwise the new jobs are queued.
* `wait` starts the jobs, at most `S2V_MAX_RUNNING_JOBS` at a time, until all have ended.
* `summarise` writes `<manifest>.summary.csv` (each row with job, status, reason, video, GPU-seconds, cost) and
  `<manifest>.summary.json` (the totals).

An unchanged manifest starts nothing. A changed or added row starts one job. With `retry_failed`, failed and cancelled
jobs start again and reuse their finished clips. The DAG runs on the schedule `S2V_BATCH_SCHEDULE` with the manifest
`S2V_BATCH_URI`, or when you trigger it with a `manifest_uri`.
"""

from datetime import timedelta

from airflow.sdk import Param, dag

from s2v_tasks.orchestration.command_operators import BatchSensor, CommandOperator
from s2v_tasks.orchestration.notifiers import failure_notifiers
from s2v_tasks.orchestration.retry_policy import retries
from s2v_tasks.schemas.steps import BATCH_DAG
from s2v_tasks.settings import load_settings

settings = load_settings()


@dag(
    dag_id=BATCH_DAG,
    description="One video for each row of a manifest.",
    doc_md=__doc__,
    schedule=settings.batch_schedule,
    catchup=False,
    on_failure_callback=failure_notifiers(),
    max_active_runs=4,
    params={
        "manifest_uri": Param(
            settings.batch_uri or "",
            type="string",
            title="Manifest",
            pattern=r"^s3://.+\.(jsonl|ndjson|csv|JSONL|NDJSON|CSV)$",
            description="S3 URI of the manifest; its summary is written beside it.",
        ),
        "retry_failed": Param(
            False, type="boolean", title="Retry", description="Also start rows whose job failed or was cancelled."
        ),
    },
    default_args=retries() | {"execution_timeout": timedelta(hours=1)},
    tags=["s2v", "ingestion"],
)
def s2v_batch() -> None:
    """Check the manifest, start its jobs, wait for them, write the summary."""
    start = CommandOperator(
        task_id="start",
        arguments=[
            "start-batch",
            "{{ params.manifest_uri }}",
            "--{{ '' if params.retry_failed else 'no-' }}retry-failed",
        ],
    )
    batch_id = "{{ ti.xcom_pull(task_ids='start')['batch_id'] }}"
    wait = BatchSensor(
        task_id="wait", batch_id=batch_id, mode="reschedule", poke_interval=30, timeout=timedelta(days=14)
    )
    start >> wait >> CommandOperator(task_id="summarise", arguments=["summarise-batch", batch_id])


s2v_batch()
