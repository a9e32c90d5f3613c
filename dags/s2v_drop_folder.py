"""# Drop folder

Turns folders in S3 into jobs, each exactly once. Upload

```
<S2V_DROP_URI>/incoming/<name>/   portrait.png   speech.wav   prompt.txt   [pose.mp4]   [request.json]
```

* `request.json` may have any field of a request, file names (`"image_uri": "portrait.png"`) and a `job_id`. Write it
  **last**: its presence marks the folder as complete.
* Without it the folder needs an image, a speech file and `prompt.txt`. It is accepted when it has not changed for
  `S2V_DROP_SETTLE_SECONDS`. An incomplete folder is rejected after `S2V_DROP_ABANDONED_SECONDS`.

The speech is an audio file or, if there is none, a video with sound whose name is not `pose`. Files of operating
systems and editors (`.DS_Store`, `._x`, `Thumbs.db`, `~$x`, hidden files) are ignored and move with the folder. An
unfinished upload (`.part`, `.crdownload`, `.tmp` ...) delays the folder, which is rejected after
`S2V_DROP_ABANDONED_SECONDS`.

An accepted folder moves to `accepted/`, an invalid one to `rejected/` with the reason in `error.json`. The same files
in the same folder make no second job; a change makes a new job.

* `sweep` finishes an interrupted sweep, then accepts or rejects the folders (`s2v sweep-drops`).
* `start` starts runs of `speech_to_video` for waiting jobs, by priority, then by age, at most `S2V_MAX_RUNNING_JOBS` at
  a time, also if `sweep` has failed. A job whose request Airflow refuses fails with that reason. A job whose run was
  deleted is closed after 15 minutes.

The DAG runs every minute. With `S2V_DROP_QUEUE_URL` it also runs when S3 sends an event to that SQS queue (requires the
extra `queue`, and the connection `aws_default` or AWS credentials in the triggerer). Each run lists the folder, so lost
or repeated events are harmless.
"""

from datetime import timedelta

from airflow.sdk import dag

from s2v_tasks.orchestration.command_operators import CommandOperator, StartJobsOperator, drop_schedule
from s2v_tasks.orchestration.notifiers import failure_notifiers
from s2v_tasks.schemas.steps import DROP_FOLDER_DAG


@dag(
    dag_id=DROP_FOLDER_DAG,
    description="Turn dropped folders into jobs and start waiting jobs.",
    doc_md=__doc__,
    schedule=drop_schedule(),
    catchup=False,
    on_failure_callback=failure_notifiers(),
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=5), "execution_timeout": timedelta(minutes=30)},
    tags=["s2v", "ingestion"],
)
def s2v_drop_folder() -> None:
    """Sweep the drop folder, then start jobs from the queue."""
    sweep = CommandOperator(task_id="sweep", arguments=["sweep-drops"])
    sweep >> StartJobsOperator(task_id="start", trigger_rule="all_done")


s2v_drop_folder()
