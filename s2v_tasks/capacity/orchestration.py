"""Run real DAG runs on a separate embedded Airflow, and collect their overhead outside the GPU."""

import time
from dataclasses import dataclass
from typing import Any

from s2v_tasks.capacity.bench_airflow import Load, Reading, bench_airflow, lines


@dataclass(frozen=True)
class Measured:
    """All records of a benchmark."""

    load: Load
    steps: list[dict[str, Any]]  # records of `StepRecorder`
    loops: list[dict[str, float]]  # of the scheduler, while the jobs ran
    tasks: list[dict[str, Any]]  # rows of Airflow's task instances
    runs: list[dict[str, Any]]  # rows of its DAG runs
    num_triggers: int
    api_log: list[str]
    attempts: dict[str, list[tuple[int, float, float]]]  # job → clip, start, end
    idle: Reading
    busy: Reading


def measure(load: Load) -> Measured:
    """Run the jobs to their end; TransientError if they do not end in time or one of them fails."""
    with bench_airflow(load) as airflow:
        began = airflow.read()
        time.sleep(load.idle_seconds)
        before = airflow.read()
        triggers = airflow.num_triggers()
        airflow.submit()
        runs = airflow.wait()
        after = airflow.read()
        return Measured(
            load=load,
            steps=lines(airflow.folder / "steps.jsonl"),
            loops=airflow.loops(before.at, after.at),
            tasks=airflow.rows("SELECT * FROM task_instance WHERE dag_id = %s"),
            runs=runs,
            num_triggers=airflow.num_triggers() - triggers,
            api_log=(airflow.installation.logs / "airflow-api-server.log").read_text(errors="replace").splitlines(),
            attempts=airflow.attempts(),
            idle=before.since(began),
            busy=after.since(before),
        )
