"""Check the counts of a benchmark from records, log lines and rows."""

from typing import Any

from s2v_tasks.capacity.counting import StepCount, api_calls, job_counts, steps_of


def record(command: list[str], statements: int, *, get: int = 1, put: int = 1, polls: int = 0) -> dict[str, Any]:
    requests, sizes = {"GET": get, "HEAD": 1, "PUT": put, "DELETE": 1}, {"sent": 10, "received": 20}
    return {"command": command, "statements": {"select": statements}, "requests": requests, "bytes": sizes} | {
        "polls": polls
    }


RECORDS = [
    record(["render-clip", "--job-id", "job-1", "--clip-index", "1", "--count", "1"], 5),
    record(["sweep-drops"], 100),
    record(["render-clip", "--job-id", "job-1", "--clip-index", "0", "--count", "1"], 4, polls=7),
    record(["stage-inputs", "--job-id", "job-1", "--run-id", "job-1"], 3, get=6, put=2),
    record(["stage-inputs", "--job-id", "job-2", "--run-id", "job-2"], 3, get=6, put=2),
]


def test_steps_are_sorted_by_pipeline_and_clip_and_other_commands_left_out() -> None:
    """The report has a fixed order, whatever the order in which processes ended."""
    steps = steps_of(RECORDS)
    assert [(clip, count.step, count.statements) for clip, count in steps["job-1"]] == [
        (-1, "stage_inputs", 3),
        (0, "render_clip", 4),
        (1, "render_clip", 5),
    ]
    assert steps["job-2"] == steps["job-1"][:1]


def test_counts_that_depend_on_time_do_not_make_two_jobs_differ() -> None:
    """Polls are reported, but do not count when jobs are compared."""
    same, busy = (StepCount.of(record(["stitch"], 3, polls=polls)) for polls in (0, 99))
    assert same == busy
    assert same != StepCount.of(record(["stitch"], 4))


def test_a_job_is_the_sum_of_its_processes() -> None:
    """GET and HEAD read, PUT and DELETE write; a second try counts."""
    tasks = [{"try_number": 1}, {"try_number": 2}]
    counts = job_counts(steps_of(RECORDS)["job-1"], tasks, api_calls=9)
    assert (counts.processes, counts.task_instances, counts.tries, counts.api_calls) == (3, 2, 3, 9)
    assert (counts.statements, counts.s3_reads, counts.s3_writes) == (12, 11, 7)
    assert (counts.bytes_sent, counts.bytes_received) == (30, 60)


def test_calls_are_those_of_the_tasks_of_a_job_without_heartbeats() -> None:
    """A call belongs to a job by task instance, run or query; calls of other DAGs are left out."""
    begin = "2026 [info] request finished [http.access] client_addr=127.0.0.1:1 duration_us=1 loc=x.py:1 method="
    log = [
        begin + "PATCH path=/execution/task-instances/ti-a/run query= status_code=200",
        begin + "PUT path=/execution/task-instances/ti-a/heartbeat query= status_code=204",
        begin + "PATCH path=/execution/task-instances/ti-other/run query= status_code=200",
        begin + "POST path=/execution/xcoms/speech_to_video/job-1/stitch/return_value query= status_code=201",
        begin + "GET path=/execution/task-instances/states query=dag_id=x&run_ids=job-1 status_code=200",
        begin + "GET path=/execution/task-instances/states query=dag_id=x&run_ids=job-11 status_code=200",
        "Updating RenderedTaskInstanceFields ti_id=ti-a",
    ]
    calls = api_calls(log, [{"id": "ti-a", "run_id": "job-1"}, {"id": "ti-b", "run_id": "job-2"}])
    assert calls == {"job-1": {"PATCH run": 1, "POST xcoms": 1, "GET states": 1}, "job-2": {}}
