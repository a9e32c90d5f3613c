"""Comparison of requests that name the same job id.

The same request continues the job. A different request is refused while the job is queued, runs or has succeeded. A job
that failed or was cancelled may start again with a corrected request.
"""

from contextlib import suppress
from typing import Any

from s2v_tasks.errors import JobTakenError, PermanentError
from s2v_tasks.schemas.request import parse_request


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
