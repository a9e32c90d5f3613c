"""# Batches

Makes a video for each row of a manifest in S3: JSON lines (`.jsonl`) or CSV, up to 10,000 rows, each with the fields of
a request and, if you like, an `id` of your own. Files named without `s3://` lie beside the manifest. In a CSV an empty
cell is a field left out, and a column `labels.team` is the label `team`.

```json
{"id": "welcome", "image_uri": "anna.png", "audio_uri": "welcome.wav", "prompt": "A woman speaks.", "preset": "quick"}
```

* `start` checks every row, its files too (`s2v check-batch URI` does the same). If one is wrong nothing starts, and
  `<manifest>.errors.csv` lists all errors of each row by the line in which it begins, as an editor counts; else the
  jobs that are not there yet are queued.
* `wait` starts them in waves, so that at most `S2V_MAX_RUNNING_JOBS` run, until all have ended.
* `summarise` writes `<manifest>.summary.csv` (each row with job, status, reason, video, GPU-seconds, cost) and
  `<manifest>.summary.json` (the totals).

The same manifest again starts nothing; a row that was changed or added starts one job, and with `retry_failed` so does
one whose job failed or was cancelled: it goes on with the clips that it has. The DAG runs on
`S2V_BATCH_SCHEDULE` with the manifest `S2V_BATCH_URI`, or when it is triggered with a `manifest_uri`.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param

from s2v_tasks.orchestration.doors import BatchSensor, CommandOperator
from s2v_tasks.orchestration.notifiers import failure_notifiers
from s2v_tasks.orchestration.retries import retries
from s2v_tasks.schemas.steps import BATCH_DAG
from s2v_tasks.settings import load_settings

settings = load_settings()

with DAG(
    BATCH_DAG,
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
    tags=["s2v"],
):
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
