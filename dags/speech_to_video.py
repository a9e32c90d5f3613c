"""# Speech to video

Makes a talking video from a **reference image**, **speech** and a **prompt** in S3. The video is as long as the
speech. The form above shows all fields and their bounds; an empty field takes the value of the preset.

```
stage_inputs → plan_clips → encode_conditions → clip[0..n-1]: wait → render
             → stitch → mux_audio → validate → publish → close_job
```

| Task | Action |
|---|---|
| `stage_inputs` | checks the request and its files, copies image and speech under the prefix of the job |
| `plan_clips` | fixes clips, frames, size and seeds before any GPU starts; its log shows time and cost |
| `encode_conditions` | encodes prompt and speech, once for all clips |
| `clip.wait` | waits for the previous clip of the chain, with `approval: each_clip` also for its approval |
| `clip.render` | renders one clip and stores it with its motion state |
| `stitch`, `mux_audio` | joins the clips without loss and adds the speech in sync |
| `validate` | checks the finished file against the plan; writes the report and the contact sheet |
| `publish` | with `approval` waits for a person first; copies the video to the output prefix, updates the asset |
| `close_job` | always runs and ends like the job; if no step gave a reason, it names the task that failed |

An example, as run configuration (`Trigger` → `Advanced options` → JSON, or `conf` of the REST API). Inputs
and size are those of the embedded stack; for the 14B model omit `size` and what follows it:

```json
{
  "image_uri": "s3://s2v/samples/portrait.jpg",
  "audio_uri": "s3://s2v/samples/speech.mp3",
  "prompt": "A drawn portrait of a friendly person with fair hair who looks into the camera and speaks calmly.",
  "preset": "balanced",
  "size": "128*192",
  "sample_steps": 4,
  "sample_guide_scale": 1.0
}
```

**When a run fails.** The log of `close_job` ends with the reason; `s2v job <job id>` shows it too. Bad input is not
retried. After a temporary failure clear the run, or trigger again with the same `job_id`: finished clips are reused and
only missing ones are rendered.

**Results.** The task `publish` links to the video, the report and the contact sheet; `validate` to the report,
also if the video failed its checks. Result of `publish`: `video_uri`, `sha256`, `duration_seconds`.

**Approval.** With `approval: result` the finished video waits until a person approves it; with `each_clip` each clip
does, too. A waiting task has the state *awaiting input* and holds no worker. Answer on the page Videos, under *Required
Actions*, or with `s2v approve` and `s2v reject`. A rejection with a changed prompt, seed or number of steps starts a
rerun from that clip. Without an answer within `S2V_APPROVAL_SECONDS` the job fails.

**Long videos.** `continuity: cut` starts a new chain from the reference image at pauses of the speech. Chains are
rendered in parallel. The log of `plan_clips` and `s2v plan` show the cuts.
"""

from typing import Any

from airflow.sdk import Asset, dag, task_group

from s2v_tasks.orchestration.clip_sensor import ClipSensor
from s2v_tasks.orchestration.dag_params import form_params
from s2v_tasks.orchestration.notifiers import failure_notifiers
from s2v_tasks.orchestration.step_operators import step_task
from s2v_tasks.schemas import steps
from s2v_tasks.settings import load_settings

CLIP_LABEL = "{{ task.clip['label'] }}"


@dag(
    dag_id=steps.JOB_DAG,
    description="Reference image + speech + prompt → talking video, clip by clip.",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    on_failure_callback=failure_notifiers(),
    max_active_runs=load_settings().max_running_jobs,
    params=form_params(),
    # Later tasks first: a run that has begun ends before workers begin another one.
    default_args={"weight_rule": "upstream"},
    tags=["s2v", "video"],
)
def speech_to_video() -> None:
    """Build the pipeline of a job; see the manual above."""
    stage_inputs = step_task(steps.STAGE_INPUTS)
    plan_clips = step_task(steps.PLAN_CLIPS, result_key="clips")
    encode_conditions = step_task(steps.ENCODE_CONDITIONS)

    @task_group(group_id=steps.CLIP_GROUP)
    def render_clip(clip: dict[str, Any]) -> None:
        wait = ClipSensor(task_id=steps.WAIT_TASK, clip=clip, map_index_template=CLIP_LABEL)
        render = step_task(steps.RENDER_CLIP, task_id=steps.RENDER_TASK, clip=clip, map_index_template=CLIP_LABEL)
        wait >> render

    clips = render_clip.expand(clip=plan_clips.output)
    stitch = step_task(steps.STITCH)
    mux_audio = step_task(steps.MUX_AUDIO)
    validate = step_task(steps.VALIDATE)
    publish = step_task(steps.PUBLISH, outlets=[Asset(name="talking_videos", uri=load_settings().output_uri)])
    # A teardown always runs, also after a run was cancelled.
    close_job = step_task(steps.CLOSE_JOB).as_teardown(on_failure_fail_dagrun=True)

    stage_inputs >> plan_clips >> encode_conditions >> clips >> stitch >> mux_audio >> validate >> publish
    # After a failed clip `publish` is skipped at once, while clips of other chains are still rendered.
    [publish, clips] >> close_job


speech_to_video()
