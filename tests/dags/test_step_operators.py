"""Check the operator of a step: its command, its result, and its failure."""

import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from s2v_tasks.orchestration import step_operators
from s2v_tasks.orchestration.step_operators import CloseJobOperator, StepOperator
from s2v_tasks.schemas.steps import CLOSE_JOB, PLAN_CLIPS, PUBLISH, RENDER_CLIP, STAGE_INPUTS, STITCH


class Store(dict[str, Any]):
    """The state that Airflow keeps for a task between tries."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


@pytest.fixture
def context() -> dict[str, Any]:
    params = {"prompt": "Hello $(date); rm -rf /", "num_clip": None, "job_id": "my-job"}
    ti = SimpleNamespace(max_tries=6)
    return {"params": params, "run_id": "manual__1", "ti": ti, "task_state_store": Store()}


def execute(operator: StepOperator, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch, script: str) -> Any:
    """Run the operator with a script in place of the command line of the package."""
    monkeypatch.setattr(operator, "command", lambda _: [sys.executable, "-c", script])
    return operator.execute(context)


def test_a_step_is_run_by_command_with_the_job_id(context: dict[str, Any]) -> None:
    """The command is an argument list for this interpreter, with the job id."""
    command = StepOperator(task_id="stitch", step=STITCH).command(context)
    assert command == [sys.executable, "-m", "s2v_tasks.cli", "stitch", "--job-id", "my-job"]


def test_the_request_is_one_argument(context: dict[str, Any]) -> None:
    """The request is one argument of the command, and no shell interprets it."""
    command = StepOperator(task_id="stage_inputs", step=STAGE_INPUTS).command(context)
    assert command[-4:] == [
        "--run-id",
        "manual__1",
        "--request-json",
        '{"prompt": "Hello $(date); rm -rf /", "num_clip": null}',
    ]


def test_several_processes_of_a_clip_are_started_by_torchrun(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several GPUs, torchrun starts one process for each."""
    from s2v_tasks.settings import load_settings

    monkeypatch.setenv("S2V_NPROC_PER_NODE", "2")
    load_settings.cache_clear()
    command = StepOperator(task_id="render", step=RENDER_CLIP, clip={"clip_index": 3, "count": 2}).command(context)
    load_settings.cache_clear()
    assert command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert command[6] == "--shutdown-timeout"  # longer than a solver step of the 14B model takes
    assert command[8:] == [
        "-m",
        "s2v_tasks.cli",
        "render-clip",
        "--job-id",
        "my-job",
        "--clip-index",
        "3",
        "--count",
        "2",
    ]


def test_one_process_renders_without_torchrun(context: dict[str, Any]) -> None:
    """With one GPU the step runs without torchrun, whose start takes seconds."""
    command = StepOperator(task_id="render", step=RENDER_CLIP, clip={"clip_index": 3, "count": 2}).command(context)
    assert command[1:4] == ["-m", "s2v_tasks.cli", "render-clip"]


def test_several_clips_have_the_time_of_each(context: dict[str, Any]) -> None:
    """The time limit grows with the number of clips that one process renders."""
    one, three = (StepOperator(task_id="r", step=RENDER_CLIP, clip={"clip_index": 0, "count": n}) for n in (1, 3))
    for operator in (one, three):
        operator.pre_execute(context)
    waits = timedelta(minutes=30)  # for S3 and then for PostgreSQL, as long as S2V_RETRY_SECONDS each
    assert (one.execution_timeout, three.execution_timeout) == (
        timedelta(hours=6) + waits,
        3 * (timedelta(hours=6) + waits),
    )


def test_the_result_or_one_value_of_it_is_the_xcom(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The XCom is the result of the step, or its value under `result_key`, over which a later task is mapped."""
    script = 'print(\'{"job_id": "my-job", "clips": [1, 2]}\')'
    plan = StepOperator(task_id="plan", step=PLAN_CLIPS, result_key="clips")
    assert execute(plan, context, monkeypatch, script) == [1, 2]
    assert execute(StepOperator(task_id="x", step=STITCH), context, monkeypatch, script)["job_id"] == "my-job"


def test_a_published_video_updates_its_asset(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The asset event has the job, the file, its duration and its checksum."""
    from airflow.sdk import Asset

    result = {"job_id": "my-job", "video_uri": "s3://b/v.mp4", "sha256": "0" * 64, "duration_seconds": 9.6875}
    asset = Asset(name="talking_videos", uri="s3://b/output")
    context["outlet_events"] = {asset: SimpleNamespace(extra={})}
    publish = StepOperator(task_id="publish", step=PUBLISH, outlets=[asset])
    execute(publish, context, monkeypatch, f"import json; print(json.dumps({result!r}))")
    assert context["outlet_events"][asset].extra == result


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [(65, AirflowFailException), (78, AirflowFailException), (2, AirflowFailException), (75, AirflowException)],
)
def test_bad_input_is_never_retried(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch, exit_code: int, expected: type[Exception]
) -> None:
    """The exit code decides between a final failure and a retry; both have the message of the step."""
    script = f"import sys; print('PermanentError: size 9*9.', file=sys.stderr); sys.exit({exit_code})"
    with pytest.raises(AirflowException, match=r"size 9\*9") as caught:
        execute(StepOperator(task_id="x", step=STITCH), context, monkeypatch, script)
    assert type(caught.value) is expected


def test_a_killed_step_is_retried(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that ends by SIGKILL is retried."""
    script = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(AirflowException, match="SIGKILL") as caught:
        execute(StepOperator(task_id="x", step=STITCH), context, monkeypatch, script)
    assert type(caught.value) is AirflowException


def test_a_step_that_keeps_failing_is_given_up(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is retried while Airflow has tries left; the third failure of the step itself is final."""
    monkeypatch.setattr(step_operators, "record_failure", lambda *_: None)  # a process of seconds
    operator = StepOperator(task_id="x", step=STITCH)
    for exit_code in (75, 75, 75, 1, 75, 139):
        with pytest.raises(AirflowException) as caught:
            execute(operator, context, monkeypatch, f"import sys; sys.exit({exit_code})")
        assert type(caught.value) is AirflowException
    with pytest.raises(AirflowFailException, match="exited with code 1"):
        execute(operator, context, monkeypatch, "import sys; sys.exit(1)")


def test_closing_a_job_ends_like_the_job(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The last task of a run succeeds only if the job has succeeded, and fails with its reason otherwise."""
    script = "import json; print(json.dumps({{'job_id': 'my-job', 'status': {!r}, 'reason': 'size 9*9 is odd.'}}))"
    close_job = CloseJobOperator(task_id="close_job", step=CLOSE_JOB)
    assert execute(close_job, context, monkeypatch, script.format("succeeded"))["status"] == "succeeded"
    with pytest.raises(AirflowFailException, match=r"Job my-job failed: size 9\*9 is odd"):
        execute(close_job, context, monkeypatch, script.format("failed"))


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({"plan_clips": "success", "clip.render_0": "success", "close_job": "running"}, []),
        ({"clip.wait_2": "failed", "clip.wait_1": "failed", "clip.render_1": "upstream_failed"}, ["clip.wait[1]"]),
        ({"clip.wait_10": "failed", "clip.wait_9": "failed", "clip.render_0": "success"}, ["clip.wait[9]"]),
        ({"clip.wait_1": "failed", "clip.render_12": "failed", "clip.render_3": "failed"}, ["clip.render[3]"]),
        ({"clip.render_0": "success", "stitch": "failed", "publish": "upstream_failed"}, ["stitch"]),
        ({"clip.render_0": "up_for_retry", "clip.render_1": "skipped", "stitch": "removed"}, []),
    ],
)
def test_closing_a_job_names_the_first_failed_task(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch, states: dict[str, str], expected: list[str]
) -> None:
    """The first failed task is named if no step reported a reason; waits that fail after a failed clip are left out."""
    from airflow.sdk import DAG
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    def get_task_states(**query: Any) -> dict[str, Any]:
        runs = {"manual__0": {"stage_inputs": "failed"}, "manual__1": states}
        assert query["dag_id"] == "speech_to_video"
        return {run_id: runs[run_id] for run_id in query["run_ids"]}

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(get_task_states))
    context["dag_run"] = SimpleNamespace(start_date=datetime(2026, 11, 22, 10, 15, tzinfo=UTC))
    with DAG("speech_to_video", schedule=None):
        command = CloseJobOperator(task_id="close_job", step=CLOSE_JOB).command(context)
    assert command[3:] == [
        *("close-job", "--job-id", "my-job", "--since", "2026-11-22T10:15:00+0000", "--run-id", "manual__1"),
        *(word for task in expected for word in ("--failed-task", task)),
    ]
