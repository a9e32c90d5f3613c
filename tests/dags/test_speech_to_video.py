"""Check the DAG as Airflow sees it: its import, its tasks, their order and its manual."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2v_tasks.schemas.steps import ENCODE_CONDITIONS, RENDER_CLIP, STITCH

REPOSITORY = Path(__file__).parents[2]
DAGS = REPOSITORY / "dags"
# airflow.sdk itself imports SQLAlchemy, so that cannot be asked of a DAG file; its own database code can.
MUST_NOT_LOAD = [
    "torch", "transformers", "diffusers", "boto3", "botocore", "librosa", "alembic", "ffmpeg", "kubernetes", "PIL",
    "s2v_tasks.engine", "s2v_tasks.media", "s2v_tasks.metadata", "s2v_tasks.planning", "s2v_tasks.steps",
    "s2v_tasks.storage", "s2v_tasks.validation",
]  # fmt: skip
PARSE = """
import json, sys, time
from airflow.sdk import Asset
Asset(name="any", uri="s3://bucket/key")  # the Amazon provider, where it is installed, loads boto3 for such a URI
loaded_by_airflow = set(sys.modules)
started = time.process_time()
import runpy
for path in sys.argv[1:]:
    runpy.run_path(path)
seconds = time.process_time() - started
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - loaded_by_airflow)}))
"""


@pytest.fixture(scope="module")
def dag() -> Any:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(DAGS)
    assert bag.import_errors == {}
    return bag.dags["speech_to_video"]


def test_parsing_the_folder_is_fast_and_loads_nothing_heavy() -> None:
    """A new process parses all DAG files in under two seconds of CPU without the engine, S3 or the database."""
    files = [str(path) for path in sorted(DAGS.glob("*.py"))]
    done = subprocess.run(
        [sys.executable, "-c", PARSE, *files], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    parsed = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in MUST_NOT_LOAD if name in parsed["modules"]] == []
    assert parsed["seconds"] < 2.0


def test_later_tasks_of_a_run_go_first(dag: Any) -> None:
    """Later tasks have a higher weight, so that a run ends before a new one gets all slots."""
    order = ["stage_inputs", "plan_clips", "encode_conditions", "clip.wait", "clip.render", "stitch", "mux_audio"]
    weights = [dag.get_task(name).weight_rule for name in order]
    assert {str(getattr(rule, "value", rule)) for rule in weights} == {"upstream"}


def test_the_tasks_follow_the_pipeline(dag: Any) -> None:
    """Every step depends on the one before; each clip waits for its predecessor, then renders."""
    downstream = {task_id: task.downstream_task_ids for task_id, task in dag.task_dict.items()}
    assert downstream == {
        "stage_inputs": {"plan_clips"},
        "plan_clips": {"encode_conditions", "clip.wait", "clip.render"},
        "encode_conditions": {"clip.wait"},
        "clip.wait": {"clip.render"},
        "clip.render": {"stitch", "close_job"},
        "stitch": {"mux_audio"},
        "mux_audio": {"validate"},
        "validate": {"publish"},
        "publish": {"close_job"},
        "close_job": set(),
    }


def test_the_outcome_of_a_run_is_that_of_its_job(dag: Any) -> None:
    """`close_job` runs in any case, also after a cancelled run, and its failure is that of the run.

    It runs after the last clip has ended, because clips of other chains continue when one has failed.
    """
    close_job = dag.task_dict["close_job"]
    assert close_job.is_teardown
    assert close_job.on_failure_fail_dagrun is True
    assert close_job.upstream_task_ids == {"publish", "clip.render"}


def test_every_task_retries_and_has_an_end(dag: Any) -> None:
    """Every task has retries (see test_retry_policy), and every step has a time limit."""
    assert min(task.retries for task in dag.tasks) >= 2
    assert all(task.execution_timeout for task in dag.tasks if task.task_id != "clip.wait")
    assert dag.dagrun_timeout is None  # a run that waits for a GPU would end, and without `close_job`


def test_each_step_of_the_dag_is_a_command(dag: Any) -> None:
    """The commands that the tasks run exist."""
    from s2v_tasks.cli import app, steps  # noqa: F401

    commands = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    assert {task.step.command for task in dag.tasks if task.task_id != "clip.wait"} <= commands


def test_as_many_runs_go_on_as_jobs_may_run(dag: Any) -> None:
    """The limit of active runs is that of running jobs, so that Airflow does not hold back a job that was started."""
    from s2v_tasks.settings import load_settings

    assert dag.max_active_runs == load_settings().max_running_jobs


def test_clips_take_turns_on_the_gpu_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most as many clips render at once, over all runs, as the setting says. As many tasks may encode conditions."""
    from s2v_tasks.orchestration.step_operators import step_task
    from s2v_tasks.settings import load_settings

    assert step_task(RENDER_CLIP).max_active_tis_per_dag == 1
    assert step_task(ENCODE_CONDITIONS).max_active_tis_per_dag == 1
    assert step_task(STITCH).max_active_tis_per_dag is None
    monkeypatch.setenv("S2V_LOCAL_RENDERS", "3")
    load_settings.cache_clear()
    assert step_task(RENDER_CLIP).max_active_tis_per_dag == 3


def test_runs_start_only_when_asked_for(dag: Any) -> None:
    """The DAG has no schedule."""
    assert dag.timetable.can_be_scheduled is False
    assert dag.catchup is False


def test_the_example_of_the_manual_works_when_pasted(dag: Any) -> None:
    """The run configuration in the manual is valid for the form and the request schema, and equals the demo's."""
    from s2v_tasks.schemas.preset import find_preset, load_presets
    from s2v_tasks.schemas.request_parsing import parse_request

    match = re.search(r"```json\n(.*?)```", dag.doc_md, re.DOTALL)
    assert match is not None
    example = json.loads(match[1])
    for name, value in example.items():
        dag.params.get_param(name).resolve(value)
    find_preset(load_presets(REPOSITORY / "config"), parse_request(example).preset)
    assert example == yaml.safe_load((REPOSITORY / "config" / "demo.yaml").read_text())


def test_the_manual_names_every_task(dag: Any) -> None:
    """The manual of the DAG names each of its tasks."""
    assert [task_id for task_id in dag.task_dict if f"`{task_id}`" not in dag.doc_md] == []


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    from s2v_tasks.settings import load_settings

    monkeypatch.setenv("S2V_EXECUTION", "kubernetes")
    load_settings.cache_clear()


@pytest.mark.usefixtures("kubernetes")
def test_the_heavy_steps_run_in_pods_where_that_is_configured() -> None:
    """With pods the DAG has the same tasks in the same order; only heavy steps use the pool of GPU pods."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(DAGS)
    assert bag.import_errors == {}
    tasks = bag.dags["speech_to_video"].task_dict
    in_pods = {task_id for task_id, task in tasks.items() if task.task_type == "StepPodOperator"}
    assert in_pods == {"encode_conditions", "clip.render"} == {t for t, task in tasks.items() if task.pool == "gpu"}
    assert tasks["close_job"].task_type == "CloseJobOfPodsOperator"
    assert all(task.execution_timeout for task in tasks.values() if task.task_id != "clip.wait")


@pytest.mark.usefixtures("kubernetes")
def test_a_missing_pod_template_breaks_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing template is an import error of the DAG that names the file."""
    from airflow.dag_processing.dagbag import DagBag

    from s2v_tasks.settings import load_settings

    shutil.copytree(REPOSITORY / "config", tmp_path, dirs_exist_ok=True)
    (tmp_path / "pods/render_clip.yaml").unlink()
    monkeypatch.setenv("S2V_CONFIG_DIR", str(tmp_path))
    load_settings.cache_clear()
    errors = DagBag(DAGS).import_errors
    assert "render_clip.yaml is missing" in next(iter(errors.values()))
