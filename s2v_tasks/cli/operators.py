"""Commands for operators: the database, the weights on disk."""

import json
from pathlib import Path
from typing import Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import OPERATORS, open_ledger
from s2v_tasks.errors import ConfigurationError

db = typer.Typer(help="The project's own database.", no_args_is_help=True)
snapshot = typer.Typer(help="Model weights on disk.", no_args_is_help=True)
app.add_typer(db, name="db", rich_help_panel=OPERATORS)
app.add_typer(snapshot, name="snapshot", rich_help_panel=OPERATORS)


@db.command("upgrade")
def db_upgrade(revision: Annotated[str, typer.Argument(help="Alembic revision.")] = "head") -> None:
    """Bring the database to the newest schema."""
    from s2v_tasks.metadata.migrate import upgrade

    upgrade(_database_url(), revision)
    typer.echo(f"database is at {revision}")


@snapshot.command("init-tiny")
def snapshot_init_tiny(
    folder: Annotated[Path, typer.Argument(help="Folder to create.")],
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal bytes.")] = 0,
) -> None:
    """Write a tiny checkpoint with random weights in the official layout, for demos and tests."""
    from s2v_tasks.engine.tiny_snapshot import write_tiny_snapshot

    write_tiny_snapshot(folder, seed)
    typer.echo(str(folder))


@snapshot.command("verify")
def snapshot_verify(
    folder: Annotated[Path, typer.Argument(help="Snapshot with a SHA256SUMS beside its files.")],
) -> None:
    """Compare all weight files with the sha256 digests of SHA256SUMS, as `sha256sum` writes them."""
    from s2v_tasks.engine.loading.checksums import verify_checksums

    typer.echo(f"{verify_checksums(folder)} files are as listed")


@app.command(rich_help_panel=OPERATORS)
def deliver_notifications(
    seconds: Annotated[float, typer.Option(min=1, help="Start no message after this time.")] = 50.0,
) -> None:
    """Send what waits in the outbox to the webhooks; what fails is tried again later, up to a day after the event."""
    from s2v_tasks.settings import load_settings
    from s2v_tasks.steps.deliver_notifications import deliver_due

    with open_ledger() as ledger:
        typer.echo(json.dumps(deliver_due(ledger, load_settings(), seconds=seconds)))


@app.command(rich_help_panel=OPERATORS)
def check() -> None:
    """Check that all that a job needs is there: database, buckets, tools, configuration, weights. Exit code 78: no."""
    from s2v_tasks.settings import load_settings
    from s2v_tasks.steps.requirements import check_requirements
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    with open_ledger() as ledger:
        ledger.jobs(limit=1)
    check_requirements(settings, ObjectStore.from_settings(settings))
    typer.echo("everything that a job needs is there")


def _database_url() -> str:
    from s2v_tasks.settings import load_settings

    url = load_settings().database_url
    if url is None:
        raise ConfigurationError("S2V_DATABASE_URL is not set: expected a PostgreSQL URL, or run `make up` first.")
    return url.get_secret_value()
