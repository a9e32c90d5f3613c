"""`s2v rerun`: make a new job from an earlier one, with another prompt or sampling from a given clip on."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.request_options import BOOKKEEPING, QUALITY, SAMPLING, request_options
from s2v_tasks.cli.submit import HandIn, JobIdOption, Unpause, Via, hand_in
from s2v_tasks.cli.terminal import PEOPLE, AsJson
from s2v_tasks.cli.watch import Watch, unknown_job
from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.manifest import fingerprint
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_parsing import parse_request
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.storage.s3 import ObjectStore


@app.command(rich_help_panel=PEOPLE)
@request_options("prompt", "preset", *SAMPLING, *QUALITY, *BOOKKEEPING, "max_gpu_seconds", "max_cost")
def rerun(
    parent: Annotated[str, typer.Argument(metavar="JOB_ID", help="The earlier job, which is not changed.")],
    fields: dict[str, Any],
    from_clip: Annotated[int, typer.Option(min=0, help="Index, from 0, of the first clip that is rendered again.")] = 0,
    job_id: JobIdOption = None,
    via: Via = "api",
    watch: Watch = False,
    unpause: Unpause = False,
    as_json: AsJson = False,
) -> None:
    """Make a video again with another prompt, seed or sampling; clips before --from-clip are reused.

    Frames, size and, where not changed, seeds are those of the earlier job. --preset takes the sampling of a preset:
    `--preset high` turns a preview into the video itself. The same rerun again is the same job.
    """
    from s2v_tasks.planning.rerun import check_from_clip
    from s2v_tasks.planning.sampling import SAMPLING_FIELDS
    from s2v_tasks.storage.s3 import ObjectStore

    store = ObjectStore.from_settings(load_settings())
    earlier, plan = _request(store, parent), _plan(store, parent)
    check_from_clip(plan, from_clip)
    _check_change(earlier, plan, fields, from_clip)
    kept = earlier.model_dump()
    if fields.get("preset", earlier.preset) != earlier.preset:
        kept |= dict.fromkeys(SAMPLING_FIELDS)  # the new preset decides them
    changed = kept | fields | {"parent_job_id": parent, "from_clip": from_clip}
    request = parse_request(changed)
    name = job_id or f"{parent[:50].rstrip('-')}-r{fingerprint(request.model_dump())[:10]}"
    raise typer.Exit(hand_in(name, request, HandIn(via, watch=watch, unpause=unpause, as_json=as_json)))


def _request(store: "ObjectStore", job_id: str) -> Request:
    """Return the request of a job whose inputs were staged."""
    from s2v_tasks.storage.layout import JobLayout
    from s2v_tasks.storage.s3 import ObjectMissingError

    try:
        return parse_request(json.loads(store.get_bytes(JobLayout(job_id).request)))
    except ObjectMissingError:
        raise unknown_job(job_id) from None


def _plan(store: "ObjectStore", job_id: str) -> Plan:
    """Return the plan of a job."""
    from s2v_tasks.storage.layout import JobLayout
    from s2v_tasks.storage.s3 import ObjectMissingError

    try:
        return Plan.model_validate_json(store.get_bytes(JobLayout(job_id).plan))
    except ObjectMissingError:
        raise PermanentError(
            f"Job {job_id} has no plan: expected a job that was planned; `s2v job {job_id}` shows it."
        ) from None


def _check_change(earlier: Request, plan: Plan, fields: dict[str, Any], from_clip: int) -> None:
    """Raise PermanentError if a rerun would only render the existing clips again.

    Clips that the earlier job has inherited may be made from other words than its own: from there on it is a change.
    """
    now = {"prompt": earlier.prompt, "preset": plan.preset, "base_seed": plan.base_seed, "guide_steps": None}
    now |= plan.sampling.model_dump()
    now |= {"adapters": [item.model_dump() for item in earlier.adapters or ()], "step_cache": earlier.step_cache}
    if any(value not in (now[name], getattr(earlier, name)) for name, value in fields.items() if name in now):
        return
    if from_clip >= len(plan.inherited):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in ("prompt", "preset", *SAMPLING))
        raise PermanentError(
            f"Nothing is changed: the clips of job {plan.job_id} from {from_clip} on would be rendered once more. Give "
            f"another {options}, or `s2v fetch {plan.job_id}` to get the video that is there."
        )
