"""Check the task of the nightly housekeeping."""

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import DRCount, GetDRCount

from s2v_tasks.orchestration import command_operators
from s2v_tasks.settings import load_settings


class Supervisor:
    """Knows one run, which is still running."""

    def send(self, message: GetDRCount | None = None, *, msg: GetDRCount | None = None) -> DRCount:
        asked = message or msg
        assert asked is not None
        assert asked.states == ["queued", "running"]
        return DRCount(count=int(asked.run_ids == ["goes-on"]))


@pytest.mark.parametrize(
    ("run_type", "dry_run", "configured", "expected"),
    [
        ("manual", True, True, "--dry-run"),
        ("manual", False, False, "--apply"),
        ("scheduled", True, True, "--apply"),
        ("scheduled", False, False, "--dry-run"),
    ],
)
def test_the_form_decides_by_hand_and_the_setting_at_night(
    run_type: str, dry_run: bool, configured: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form decides about `--apply` in a manual run, the setting in a scheduled one; lost runs are passed by id."""
    calls: list[tuple[str, ...]] = []

    def run_command(task: Any, *arguments: str) -> dict[str, Any]:
        calls.append(arguments)
        return {"run_ids": ["goes-on", "gone"]}

    monkeypatch.setattr(command_operators, "run_command", run_command)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Supervisor(), raising=False)
    monkeypatch.setenv("S2V_HOUSEKEEPING_APPLY", str(configured))
    load_settings.cache_clear()
    task = command_operators.HousekeepingOperator(task_id="housekeeping")
    task.execute({"dag_run": SimpleNamespace(run_type=run_type), "params": {"dry_run": dry_run}})
    assert calls == [("silent-runs",), ("housekeeping", expected, "--gone-run", "gone")]
