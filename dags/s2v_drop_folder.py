"""# Drop folder

Turns folders that people or systems put into S3 into jobs, each exactly once. Drop

```
<S2V_DROP_URI>/incoming/<name>/   portrait.png   speech.wav   prompt.txt   [pose.mp4]   [request.json]
```

* `request.json` has any fields of a request, may name the files (`"image_uri": "portrait.png"`), may choose the
  `job_id`, and is written **last**: its presence says that the folder is complete.
* Without it the folder needs an image, a speech file and `prompt.txt`, and is taken when nobody has written in it for
  `S2V_DROP_SETTLE_SECONDS`; a folder that lacks something is refused after `S2V_DROP_ABANDONED_SECONDS`.

The speech may be a sound file or, where there is none, a video with sound that is not called `pose`. What systems leave
behind (`.DS_Store`, `._x`, `Thumbs.db`, `~$x`, back-ups of editors, all hidden files) is ignored and moves along. An
unfinished upload (`.part`, `.crdownload`, `.tmp` ...) is waited for, and refused after `S2V_DROP_ABANDONED_SECONDS`.

An accepted folder moves to `accepted/`, one that makes no job to `rejected/` with an `error.json` that says why.
Exactly the same files dropped in the same folder again make no second job; anything changed makes a new one.

* `sweep` takes in what lies there, and first finishes what a killed sweep began (`s2v sweep-drops`).
* `start` starts a run of `speech_to_video` for each waiting job whose turn it is, by priority, then by age, so that at
  most `S2V_MAX_RUNNING_JOBS` run. A job that Airflow refuses for good has failed with that reason. One whose run was
  deleted is closed after 15 minutes and gives its place back.

The DAG runs every minute. With `S2V_DROP_QUEUE_URL` it also runs as soon as S3 puts an event into that SQS queue (needs
the extra `queue`, and the connection `aws_default` or AWS's own credentials in the triggerer); the listing stays the
truth, so lost or repeated events do no harm.
"""

from datetime import timedelta

from airflow.sdk import DAG

from s2v_tasks.orchestration.doors import CommandOperator, StartJobsOperator
from s2v_tasks.orchestration.drop_events import drop_schedule
from s2v_tasks.orchestration.notifiers import failure_notifiers
from s2v_tasks.schemas.steps import DROP_FOLDER_DAG

with DAG(
    DROP_FOLDER_DAG,
    doc_md=__doc__,
    schedule=drop_schedule(),
    catchup=False,
    on_failure_callback=failure_notifiers(),
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=5), "execution_timeout": timedelta(minutes=30)},
    tags=["s2v"],
):
    CommandOperator(task_id="sweep", arguments=["sweep-drops"]) >> StartJobsOperator(task_id="start")
