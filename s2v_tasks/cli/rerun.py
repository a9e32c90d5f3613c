"""`s2v rerun`: a new job from an earlier one, with other words or another sampling from some clip on."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.options import BOOKKEEPING, SAMPLING, request_options
from s2v_tasks.cli.submit import AsJson, JobIdOption, Via, hand_in
from s2v_tasks.cli.terminal import PEOPLE
from s2v_tasks.cli.watch import Watch, unknown_job
from s2v_tasks.schemas.manifest import fingerprint
from s2v_tasks.schemas.request import Request, parse_request
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.storage.s3 import ObjectStore


@app.command(rich_help_panel=PEOPLE)
@request_options("prompt", *SAMPLING, *BOOKKEEPING, "max_gpu_seconds", "max_cost")
def rerun(
    parent: Annotated[str, typer.Argument(metavar="JOB_ID", help="The earlier job; it stays what it is.")],
    fields: dict[str, Any],
    from_clip: Annotated[int, typer.Option(min=0, help="First clip, from 0, that is rendered anew.")] = 0,
    job_id: JobIdOption = None,
    via: Via = "api",
    watch: Watch = False,
    as_json: AsJson = False,
) -> None:
    """Make a video again with other words, seed or sampling; clips before --from-clip are reused and cost nothing.

    Frames, size and, where not changed, seeds are those of the earlier job. The same rerun again is the same job.
    """
    from s2v_tasks.storage.s3 import ObjectStore

    earlier = _request(ObjectStore.from_settings(load_settings()), parent)
    changed = earlier.model_dump() | fields | {"parent_job_id": parent, "from_clip": from_clip}
    request = parse_request(changed)
    name = job_id or f"{parent[:50].rstrip('-')}-r{fingerprint(request.model_dump())[:10]}"
    raise typer.Exit(hand_in(name, request, via, watch=watch, as_json=as_json))


def _request(store: "ObjectStore", job_id: str) -> Request:
    """The request of a job that got past its first step."""
    import json

    from s2v_tasks.storage.layout import JobLayout
    from s2v_tasks.storage.s3 import ObjectMissingError

    try:
        return parse_request(json.loads(store.get_bytes(JobLayout(job_id).request)))
    except ObjectMissingError:
        raise unknown_job(job_id) from None
