"""`s2v db` and `s2v check`: the database of this installation, and all that a job needs of it."""

from typing import Annotated

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import OPERATORS
from s2v_tasks.errors import ConfigurationError

db = typer.Typer(help="The project's own database.", no_args_is_help=True)
app.add_typer(db, name="db", rich_help_panel=OPERATORS)


@db.command("upgrade")
def db_upgrade(
    revision: Annotated[str, typer.Argument(help="Revision to stop at, for example 0003.")] = "head",
) -> None:
    """Upgrade the database to the newest schema."""
    from s2v_tasks.metadata.migrate import upgrade

    typer.echo(f"database is at {upgrade(_database_url(), revision)}")


@app.command(rich_help_panel=OPERATORS)
def check() -> None:
    """Check the requirements of a job: database schema, buckets, tools, configuration, weights, GPUs.

    Exit code 78: a requirement is missing.
    """
    from s2v_tasks.runtime.requirements import check_installation
    from s2v_tasks.settings import load_settings
    from s2v_tasks.storage.s3 import ObjectStore

    settings = load_settings()
    check_installation(settings, ObjectStore.from_settings(settings), _database_url())
    typer.echo("all requirements are met")


def _database_url() -> str:
    from s2v_tasks.settings import load_settings

    url = load_settings().database_url
    if url is None:
        raise ConfigurationError("S2V_DATABASE_URL is not set: expected a PostgreSQL URL, or run `make up` first.")
    return url.get_secret_value()
