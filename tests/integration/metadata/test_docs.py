"""Check the queries and the diagram of docs/metadata.md."""

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from s2v_tasks.metadata.tables import Base

PAGE = (Path(__file__).parents[3] / "docs" / "metadata.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
ROWS = """
INSERT INTO jobs (job_id, status, preset, priority, labels, source, parent_job_id, cost_per_gpu_hour, currency,
                  started_at)
VALUES ('job-1', 'running', 'quick', 'normal', '{"team": "news"}', 'drop', NULL, 3.6, 'USD', now()),
       ('job-2', 'queued', 'high', 'high', '{"team": "news", "show": "a"}', 'rerun', 'job-1', NULL, NULL, NULL),
       ('job-3', 'queued', 'high', 'high', '{"team": "sport"}', 'ui', NULL, NULL, NULL, NULL);
INSERT INTO clips (job_id, clip_index, status, start_frame, end_frame, source_job_id, updated_at)
VALUES ('job-1', 0, 'rendering', 0, 48, NULL, now() - interval '1 hour'),
       ('job-2', 0, 'succeeded', 0, 48, 'job-1', now()),
       ('job-2', 1, 'pending', 48, 96, NULL, now());
INSERT INTO attempts (job_id, clip_index, attempt, outcome, gpu_seconds, world_size, node, reason)
VALUES ('job-1', 0, 1, 'lost', 100, 1, 'gpu-7', 'Silent.'), ('job-1', 0, 2, 'succeeded', 900, 2, 'gpu-8', NULL),
       ('job-1', 0, 3, 'running', NULL, 1, 'gpu-7', NULL);
INSERT INTO drops (drop_id, folder_uri, target_uri, etag, files, job_id, status, error)
VALUES ('a', 's3://b/incoming/a', 's3://b/accepted/a', 'e', '{}', 'job-1', 'accepted', NULL),
       ('b', 's3://b/incoming/b', 's3://b/rejected/b', 'e', '{}', NULL, 'rejected', '{"error": "No image."}');
"""


def answers(url: str, number: int) -> list[dict[str, Any]]:
    with psycopg.connect(url, row_factory=dict_row) as connection:
        connection.execute(ROWS)
        return connection.execute(QUERIES[number].encode()).fetchall()


def test_the_page_asks_six_questions() -> None:
    """The page has six queries, each of which a test below runs."""
    assert len(QUERIES) == 6


def test_waiting_jobs_of_a_label(postgres_url: str) -> None:
    """The query returns waiting jobs of the label by priority, and no other job."""
    assert [row["job_id"] for row in answers(postgres_url, 0)] == ["job-2", "job-1"]


def test_cost_by_preset(postgres_url: str) -> None:
    """The query counts all attempts and states lost ones separately."""
    (row,) = answers(postgres_url, 1)
    assert (row["preset"], row["jobs"], row["gpu_seconds"], row["wasted_gpu_seconds"]) == ("quick", 1, 1000, 100)
    assert row["cost"] == pytest.approx(1.0)


def test_silent_clips(postgres_url: str) -> None:
    """The query finds a rendering clip without progress."""
    assert [(row["job_id"], row["is_silent"]) for row in answers(postgres_url, 2)] == [("job-1", True)]


def test_refused_drops(postgres_url: str) -> None:
    """The query returns the reason of each refused folder, and the job of accepted ones."""
    rows = {row["folder_uri"]: row for row in answers(postgres_url, 3)}
    assert rows["s3://b/incoming/b"]["error"] == "No image."
    assert rows["s3://b/incoming/a"]["job_id"] == "job-1"
    assert rows["s3://b/incoming/a"]["waited"] is not None


def test_where_the_clips_of_a_rerun_come_from(postgres_url: str) -> None:
    """The query returns the parent job for inherited clips, and the job itself for others."""
    assert [(row["clip_index"], row["rendered_by"]) for row in answers(postgres_url, 4)] == [(0, "job-1"), (1, "job-2")]


def test_failures_of_each_machine(postgres_url: str) -> None:
    """The query counts failed and lost attempts by machine, the worst machine first, with a reason."""
    assert [tuple(row.values()) for row in answers(postgres_url, 5)] == [
        ("gpu-7", 2, 1, "Silent."),
        ("gpu-8", 1, 0, None),
    ]


def test_the_diagram_has_every_table_and_only_columns_that_exist() -> None:
    """The diagram has all tables, and only names of existing columns."""
    drawn = dict(re.findall(r"^    (\w+) \{\n(.*?)^    \}", PAGE, re.DOTALL | re.MULTILINE))
    assert set(drawn) == set(Base.metadata.tables)
    for name, body in drawn.items():
        columns = re.findall(r"^        \w+ (\w+)", body, re.MULTILINE)
        assert [column for column in columns if column not in Base.metadata.tables[name].columns] == []
