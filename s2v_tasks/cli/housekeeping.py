"""`s2v housekeeping`, `s2v silent-runs` and `s2v deliver-notifications`: recurring maintenance."""

from typing import TYPE_CHECKING, Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import OPERATORS, open_metadata_store, print_json
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.metadata.store import MetadataStore


@app.command(rich_help_panel=OPERATORS)
def housekeeping(
    apply: Annotated[bool, typer.Option("--apply/--dry-run", help="Make the changes, or only list them.")] = False,
    gone_run: Annotated[
        list[str] | None, typer.Option(help="A DAG run that ended or does not exist. Default: Airflow is asked.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole listing.")] = False,
) -> None:
    """Delete expired objects, report mismatches between S3 and the database, close orphaned jobs."""
    from s2v_tasks.housekeeping import Housekeeping
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    with open_metadata_store() as metadata:
        house = Housekeeping(ObjectStore.from_settings(settings), metadata, settings)
        gone = _gone_runs(metadata) if gone_run is None else gone_run
        found = house.find(gone)
        if apply:
            house.apply(found)
    found.log(applied=apply)
    listing = {"applied": apply} | found.listing()
    if not as_json:
        numbers = {name: len(value) if isinstance(value, list) else value for name, value in listing.items()}
        listing = numbers | {"differences": {name: len(uris) for name, uris in listing["differences"].items()}}
    print_json(listing, indent=2 if as_json else None)


@app.command(rich_help_panel=OPERATORS)
def silent_runs() -> None:
    """List the DAG runs of jobs without a recent heartbeat."""
    with open_metadata_store() as metadata:
        print_json({"run_ids": [job.dag_run_id for job in metadata.housekeeping.silent_runs()]}, indent=None)


@app.command(rich_help_panel=OPERATORS)
def deliver_notifications(
    seconds: Annotated[float, typer.Option(min=1, help="Start no further delivery after this time.")] = 50.0,
) -> None:
    """Deliver pending webhook messages; failed ones are retried for up to a day after their event."""
    from s2v_tasks.webhooks.delivery import deliver_due

    with open_metadata_store() as metadata:
        print_json(deliver_due(metadata, load_settings(), seconds=seconds), indent=None)


def _gone_runs(metadata: "MetadataStore") -> list[str]:
    """Return the silent runs that have ended or are unknown to Airflow; none if no Airflow is configured."""
    from s2v_tasks.cli.airflow_api import AirflowApi

    settings = load_settings()
    if settings.airflow_url is None:
        return []
    api = AirflowApi.from_settings(settings)
    found = {job.dag_run_id: api.run(job.dag_run_id) for job in metadata.housekeeping.silent_runs()}
    return [run_id for run_id, run in found.items() if run is None or run["state"] in {"success", "failed"}]
