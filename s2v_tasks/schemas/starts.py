"""Starts of a job: at most one run of a job at a time, and one request for each job id.

The same request continues a job. A different request is refused while the job is queued, runs or has succeeded. A job
that failed or was cancelled may start again with a corrected request.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from s2v_tasks.errors import JobTakenError, PermanentError
from s2v_tasks.schemas.job import run_id_of_start
from s2v_tasks.schemas.request_parsing import parse_request


def start_once(
    job_id: str,
    conf: dict[str, Any],
    find: Callable[[str], tuple[str, dict[str, Any]] | None],
    trigger: Callable[[str], bool],
) -> tuple[str, str | None]:
    """Start a run of a job unless one runs or has succeeded; return its id, and its state unless it was started now.

    A job whose runs all failed gets another one, `<job id>--2` and so on: finished clips are reused. JobTakenError when
    the job id belongs to another request. `find`: returns state and configuration of a run; `trigger`: starts a run and
    returns False if there is one with this id.
    """
    number = 1
    while True:
        run_id = run_id_of_start(job_id, number)
        found = find(run_id)
        if found is None:
            if trigger(run_id):
                return run_id, None
            continue  # another process started it first
        state, earlier_conf = found
        if state != "failed":
            refuse_other_request(job_id, conf, earlier_conf)
            return run_id, state
        number += 1


def differing_fields(ours: dict[str, Any], theirs: dict[str, Any], *, given_only: bool = False) -> list[str]:
    """Return the names of the fields in which two requests differ; an omitted field has its default.

    `given_only`: fields that `ours` omits are not compared, because a form fills them later.
    """
    ours, theirs = _given(ours), _given(theirs)
    given = set(ours)
    with suppress(PermanentError):  # an invalid request is compared as it is
        ours, theirs = parse_request(ours).model_dump(), parse_request(theirs).model_dump()
    names = given if given_only else {*ours, *theirs}
    return sorted(name for name in names if ours.get(name) != theirs.get(name))


def refuse_other_request(
    job_id: str, ours: dict[str, Any], theirs: dict[str, Any], *, given_only: bool = False
) -> None:
    """Raise JobTakenError if `ours` differs from `theirs`, the request of the job."""
    if differing := differing_fields(ours, theirs, given_only=given_only):
        raise JobTakenError(
            f"Job {job_id!r} exists with other values of {', '.join(differing)}: choose another job id, or use "
            f"`s2v rerun {job_id}` to change its video."
        )


def _given(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if value is not None and name != "job_id"}
