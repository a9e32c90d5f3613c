"""Measurements of the services of a benchmark at one moment, from their databases and from /proc."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg

from s2v_tasks.schemas.steps import JOB_DAG

_COMPONENTS = ("scheduler", "triggerer", "dag-processor", "api-server")


@dataclass(frozen=True)
class Reading:
    """Measurements of the services at one moment."""

    at: float
    cpu_seconds: dict[str, float]
    transactions: dict[str, int]  # by database
    wal_bytes: int

    def since(self, earlier: "Reading") -> "Reading":
        """Return the differences; `at` becomes the seconds between."""
        return Reading(
            self.at - earlier.at,
            {name: value - earlier.cpu_seconds.get(name, 0.0) for name, value in self.cpu_seconds.items()},
            {name: value - earlier.transactions.get(name, 0) for name, value in self.transactions.items()},
            self.wal_bytes - earlier.wal_bytes,
        )


@dataclass(frozen=True)
class Open:
    """Connections of each database and triggers of Airflow that are open at one moment."""

    connections: dict[str, int]
    triggers: int

    def most(self, other: "Open") -> "Open":
        """Return the larger of each number."""
        names = {*self.connections, *other.connections}
        return Open(
            {name: max(self.connections.get(name, 0), other.connections.get(name, 0)) for name in sorted(names)},
            max(self.triggers, other.triggers),
        )


class AirflowState:
    """Airflow of a benchmark: its database, and the folder with the process ids of its components."""

    def __init__(self, database: str, folder: Path) -> None:
        self._database, self._folder = database, folder

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return the rows of Airflow's database that a query with the id of the DAG finds."""
        with psycopg.connect(self._database, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute(query, (JOB_DAG,)).fetchall()

    def num_triggers(self) -> int:
        """Return the number of triggers created so far."""
        query = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM trigger_id_seq"
        with psycopg.connect(self._database) as connection:
            return int((connection.execute(query).fetchone() or [0])[0])

    def open(self) -> Open:
        """Count the connections and triggers that are open now, without the connection that counts."""
        with psycopg.connect(self._database) as connection:
            connections = connection.execute(
                "SELECT datname, count(*) FROM pg_stat_activity "
                "WHERE datname IN ('airflow', 's2v') AND pid <> pg_backend_pid() GROUP BY datname"
            ).fetchall()
            triggers = connection.execute('SELECT count(*) FROM "trigger"').fetchone()
        return Open({name: int(number) for name, number in connections}, int((triggers or [0])[0]))

    def read(self) -> Reading:
        """Measure the services now."""
        with psycopg.connect(self._database) as connection:
            databases = connection.execute(
                "SELECT datname, xact_commit + xact_rollback FROM pg_stat_database WHERE datname IN ('airflow', 's2v')"
            ).fetchall()
            wal = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").fetchone()
        seconds = {name: _seconds(self._folder / f"{name}.pid") for name in _COMPONENTS}
        return Reading(time.time(), seconds, {name: int(n) for name, n in databases}, int((wal or [0])[0]))

    def heartbeat_age(self) -> float:
        """Return the seconds since the latest heartbeat of the scheduler."""
        age = "SELECT extract(epoch FROM now() - max(latest_heartbeat)) FROM job WHERE job_type = 'SchedulerJob'"
        with psycopg.connect(self._database) as connection:
            return float((connection.execute(age).fetchone() or [0])[0])


def _seconds(pid_path: Path) -> float:
    """Return the CPU seconds of a component of Airflow, without the workers of the scheduler and what they start."""
    process = psutil.Process(int(pid_path.read_text()))
    helpers = [] if pid_path.stem == "scheduler" else process.children()
    return float(sum(sum(part.cpu_times()[:2]) for part in [process, *helpers]))
