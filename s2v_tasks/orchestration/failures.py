"""Why a step failed, for those that died before they could say it: put on record in their place."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from s2v_tasks.orchestration.commands import CLI
from s2v_tasks.orchestration.jobs import job_id_of
from s2v_tasks.orchestration.process import StepFailedError, StepProcess


def record_failure(
    step: str,
    context: Mapping[str, Any],
    clip: Mapping[str, Any] | None,
    reason: str,
    log_line: Callable[[str], None],
) -> None:
    """Write `reason` to the project's database, as the step would have. A database that is away costs a log line."""
    command = [sys.executable, *CLI, "record-failure", "--job-id", job_id_of(context), "--step", step]
    if clip is not None:
        command += ["--clip-index", str(clip["clip_index"]), "--count", str(clip["count"])]
    try:
        StepProcess([*command, "--reason", reason], log_line).run()
    except StepFailedError as failure:
        log_line(f"The reason could not be put on record: {failure.message}")
