"""Check `s2v bench queue` in an app of its own."""

import json

import typer
from typer.testing import CliRunner

from s2v_tasks.cli.bench_jobs import queue

OPTIONS = ["--gpus", "4", "--jobs-per-day", "300", "--hours", "6", "--workers", "4", "--schedulers", "1"]


def test_the_result_names_what_saturates_first() -> None:
    """A day of few jobs saturates nothing; with one running job at a time, that limit is named."""
    app = typer.Typer()
    app.command()(queue)
    free, bound = (
        json.loads(CliRunner().invoke(app, [*OPTIONS, "--max-running-jobs", limit, "--json"]).stdout)
        for limit in ("99", "1")
    )
    assert free["jobs"] == bound["jobs"] > 50
    assert (free["saturated"], bound["saturated"]) == ("GPUs", "running")
    assert free["wait_seconds"]["normal"][0] < 60 < bound["wait_seconds"]["normal"][0]
    table = CliRunner().invoke(app, OPTIONS).stdout
    assert "First limit that is reached: GPUs." in table
    assert f"{free['jobs']} jobs, {free['failed']} failed." in table
