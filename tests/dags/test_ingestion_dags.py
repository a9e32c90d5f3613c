"""Check the tasks and the schedules of the DAGs of the drop folder and of batches."""

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError

from s2v_tasks.orchestration.command_operators import drop_schedule
from s2v_tasks.settings import load_settings

DAGS = Path(__file__).parents[2] / "dags"


def loaded(dag_id: str) -> Any:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(DAGS)
    assert bag.import_errors == {}
    return bag.dags[dag_id]


def test_the_drop_folder_is_swept_every_minute_and_never_twice_at_once() -> None:
    """The DAG sweeps, then starts waiting jobs; one run at a time, without catch-up of missed minutes."""
    dag = loaded("s2v_drop_folder")
    assert {task_id: task.downstream_task_ids for task_id, task in dag.task_dict.items()} == {
        "sweep": {"start"},
        "start": set(),
    }
    assert dag.timetable.expression == "* * * * *"
    assert (dag.catchup, dag.max_active_runs) == (False, 1)


def test_a_queue_adds_events_to_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """With S2V_DROP_QUEUE_URL the asset watches that queue, and the schedule by time stays."""
    monkeypatch.setenv("S2V_DROP_QUEUE_URL", "https://sqs.eu-central-1.amazonaws.com/1/drops")
    load_settings.cache_clear()
    schedule = drop_schedule()
    assert schedule.timetable.expression == "* * * * *"
    (asset,) = schedule.asset_condition.objects
    (watcher,) = asset.watchers
    _, kwargs = watcher.trigger.serialize()
    assert kwargs["sqs_queue"] == "https://sqs.eu-central-1.amazonaws.com/1/drops"


def test_a_batch_is_checked_waited_for_and_summed_up() -> None:
    """The batch DAG has no schedule, asks for the manifest, checks it, waits for its jobs and summarises them."""
    dag = loaded("s2v_batch")
    assert {task_id: task.downstream_task_ids for task_id, task in dag.task_dict.items()} == {
        "start": {"wait"},
        "wait": {"summarise"},
        "summarise": set(),
    }
    assert dag.timetable.can_be_scheduled is False
    assert list(dag.params) == ["manifest_uri", "retry_failed"]
    manifest = dag.params.get_param("manifest_uri")
    for uri in ("s3://bucket/batch/monday.jsonl", "s3://bucket/Büro/Woche 47.CSV"):
        assert manifest.resolve(uri) == uri
    with pytest.raises(ParamValidationError):
        manifest.resolve("s3://bucket/batch/monday.txt")


def test_the_manuals_name_every_task_and_every_command_exists() -> None:
    """The manual of each DAG names all its tasks, and each command that a task runs exists."""
    from s2v_tasks.cli import app, housekeeping, ingestion  # noqa: F401

    known = {(command.callback.__name__).replace("_", "-") for command in app.registered_commands if command.callback}
    for dag_id in ("s2v_drop_folder", "s2v_batch"):
        dag = loaded(dag_id)
        assert [task_id for task_id in dag.task_dict if f"`{task_id}`" not in dag.doc_md] == []
        assert {task.arguments[0] for task in dag.tasks if hasattr(task, "arguments")} <= known
    assert {"next-jobs", "mark-started", "close-lost", "refuse-job", "batch-state"} <= known
