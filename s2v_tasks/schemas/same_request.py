"""A job id belongs to one request: the comparison, for every way that a request can reach a job.

The same request again continues the job. Another request is refused while the job waits, runs or has succeeded; a job
that failed or was cancelled may be started again with a corrected one.
"""

from contextlib import suppress
from typing import Any

from s2v_tasks.errors import JobTakenError, PermanentError
from s2v_tasks.schemas.request import parse_request


def differing_fields(ours: dict[str, Any], theirs: dict[str, Any], *, given_only: bool = False) -> list[str]:
    """The fields in which two requests differ; a field left out has its default.

    `given_only`: what `ours` leaves out is no difference, because a form fills it later.
    """
    ours, theirs = _given(ours), _given(theirs)
    given = set(ours)
    with suppress(PermanentError):  # where one of them is no request they are compared as they are
        ours, theirs = parse_request(ours).model_dump(), parse_request(theirs).model_dump()
    names = given if given_only else {*ours, *theirs}
    return sorted(name for name in names if ours.get(name) != theirs.get(name))


def refuse_other_request(
    job_id: str, ours: dict[str, Any], theirs: dict[str, Any], *, given_only: bool = False
) -> None:
    """JobTakenError when `ours` is not the request of the job, which is `theirs`."""
    if differing := differing_fields(ours, theirs, given_only=given_only):
        raise JobTakenError(
            f"Job {job_id!r} is there with other values of {', '.join(differing)}: choose another job id, or use "
            f"`s2v rerun {job_id}` to change what was made."
        )


def _given(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if value is not None and name != "job_id"}
