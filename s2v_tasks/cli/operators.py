"""Commands for operators: the database, the weights on disk."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import OPERATORS, open_metadata_store, print_json
from s2v_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from s2v_tasks.housekeeping.retention import Housekeeping

db = typer.Typer(help="The project's own database.", no_args_is_help=True)
snapshot = typer.Typer(help="Model weights on disk.", no_args_is_help=True)
app.add_typer(db, name="db", rich_help_panel=OPERATORS)
app.add_typer(snapshot, name="snapshot", rich_help_panel=OPERATORS)


@db.command("upgrade")
def db_upgrade(
    revision: Annotated[str, typer.Argument(help="Revision to stop at, for example 0003.")] = "head",
) -> None:
    """Bring the database to the newest schema."""
    from s2v_tasks.metadata.migrate import upgrade

    typer.echo(f"database is at {upgrade(_database_url(), revision)}")


@snapshot.command("init-tiny")
def snapshot_init_tiny(
    folder: Annotated[Path, typer.Argument(help="Folder to create.")],
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal bytes.")] = 0,
) -> None:
    """Write a tiny checkpoint with random weights in the official layout, for demos and tests."""
    from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot

    write_tiny_snapshot(folder, seed)
    typer.echo(str(folder))


@snapshot.command("verify")
def snapshot_verify(
    folder: Annotated[Path, typer.Argument(help="Snapshot with a SHA256SUMS beside its files.")],
) -> None:
    """Compare all weight files with the sha256 digests of SHA256SUMS, as `sha256sum` writes them."""
    from s2v_tasks.engine.loading.identity import verify_checksums

    typer.echo(f"{verify_checksums(folder)} files are as listed")


@app.command(rich_help_panel=OPERATORS)
def deliver_notifications(
    seconds: Annotated[float, typer.Option(min=1, help="Start no message after this time.")] = 50.0,
) -> None:
    """Send what waits in the outbox to the webhooks; what fails is tried again later, up to a day after the event."""
    from s2v_tasks.settings import load_settings
    from s2v_tasks.webhooks.dispatch import deliver_due

    with open_metadata_store() as metadata:
        typer.echo(json.dumps(deliver_due(metadata, load_settings(), seconds=seconds)))


@app.command(rich_help_panel=OPERATORS)
def check() -> None:
    """Check that all that a job needs is there: database with its schema, buckets, tools, configuration, weights, GPUs.

    Exit code 78: something is missing.
    """
    from s2v_tasks.runtime.requirements import check_installation
    from s2v_tasks.settings import load_settings
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    check_installation(settings, ObjectStore.from_settings(settings), _database_url())
    typer.echo("everything that a job needs is there")


@app.command(rich_help_panel=OPERATORS)
def housekeeping(
    apply: Annotated[bool, typer.Option("--apply/--dry-run", help="Do it, or only list what would be done.")] = False,
    gone_run: Annotated[
        list[str] | None, typer.Option(help="A DAG run that ended or does not exist; left out: Airflow is asked.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole listing.")] = False,
) -> None:
    """Delete what nobody needs any more, abort unfinished uploads, close jobs whose run is gone, compare S3 and SQL."""
    with _housekeeping() as house:
        gone = _gone_runs(house.silent_run_ids()) if gone_run is None else gone_run
        found = house.look(gone)
        if apply:
            house.apply(found)
    found.tell(applied=apply)
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


@contextmanager
def _housekeeping() -> Iterator["Housekeeping"]:
    from s2v_tasks.housekeeping.retention import Housekeeping
    from s2v_tasks.settings import load_settings
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    with open_metadata_store() as metadata:
        yield Housekeeping(ObjectStore.from_settings(settings), metadata, settings)


def _gone_runs(run_ids: list[str]) -> list[str]:
    """Those that Airflow does not know or knows to have ended; none where no Airflow is configured."""
    from s2v_tasks.cli.airflow_api import AirflowApi
    from s2v_tasks.settings import load_settings

    settings = load_settings()
    if settings.airflow_url is None:
        return []
    api = AirflowApi.from_settings(settings)
    found = {run_id: api.run(run_id) for run_id in run_ids}
    return [run_id for run_id, run in found.items() if run is None or run["state"] in {"success", "failed"}]


def _database_url() -> str:
    from s2v_tasks.settings import load_settings

    url = load_settings().database_url
    if url is None:
        raise ConfigurationError("S2V_DATABASE_URL is not set: expected a PostgreSQL URL, or run `make up` first.")
    return url.get_secret_value()
