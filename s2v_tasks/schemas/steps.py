"""The steps of the pipeline and the DAGs: their names, and the properties of each step for scheduling."""

from dataclasses import dataclass
from datetime import timedelta

from s2v_tasks.errors import PermanentError

JOB_DAG = "speech_to_video"
BATCH_DAG = "s2v_batch"
DROP_FOLDER_DAG = "s2v_drop_folder"
HOUSEKEEPING_DAG = "s2v_housekeeping"
NOTIFICATIONS_DAG = "s2v_notifications"

# Tasks of JOB_DAG whose ids are not the names of steps.
CLIP_GROUP, WAIT_TASK, RENDER_TASK = "clip", "wait", "render"
CLIP_WAIT_TASK = f"{CLIP_GROUP}.{WAIT_TASK}"
CLIP_RENDER_TASK = f"{CLIP_GROUP}.{RENDER_TASK}"


@dataclass(frozen=True)
class Step:
    """One step: one task, one command, one module in `s2v_tasks/steps/`.

    `name` is the module, the task id and the value stored in manifests and in the database.
    """

    name: str
    timeout: timedelta = timedelta(minutes=30)  # of the work only, without waits for S3, PostgreSQL or a node
    pod_retries: int = 10  # a pod may be evicted more often than a step may fail
    is_heavy: bool = False  # needs GPU time: runs in a pod where pods are configured, and is metered by attempts
    is_distributed: bool = False  # runs on S2V_NPROC_PER_NODE processes

    @property
    def command(self) -> str:
        """Return the name of the `s2v` command."""
        return self.name.replace("_", "-")


STAGE_INPUTS = Step("stage_inputs")
PLAN_CLIPS = Step("plan_clips")
ENCODE_CONDITIONS = Step("encode_conditions", timeout=timedelta(hours=1), is_heavy=True)
RENDER_CLIP = Step("render_clip", timeout=timedelta(hours=6), is_heavy=True, is_distributed=True)
STITCH = Step("stitch")
MUX_AUDIO = Step("mux_audio")
VALIDATE = Step("validate")
PUBLISH = Step("publish")
CLOSE_JOB = Step("close_job")
# Run by Airflow in place of a step that ended without a report; it is not a task.
RECORD_FAILURE = Step("record_failure")
# Run by the tasks that wait for an approval: `clip.wait` for the previous clip, `publish` for the video.
ASK_APPROVAL = Step("ask_approval")
RECORD_APPROVAL = Step("record_approval")

PIPELINE = (
    STAGE_INPUTS, PLAN_CLIPS, ENCODE_CONDITIONS, RENDER_CLIP, STITCH, MUX_AUDIO, VALIDATE, PUBLISH, CLOSE_JOB,
)  # fmt: skip
HEAVY_STEPS = tuple(step for step in PIPELINE if step.is_heavy)


def step_of_command(command: str) -> Step:
    """Return the step of an `s2v` command; PermanentError if there is none."""
    for step in PIPELINE:
        if step.command == command:
            return step
    raise PermanentError(f"step {command!r}: expected one of {', '.join(step.command for step in PIPELINE)}.")
