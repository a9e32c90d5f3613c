"""Connections to the project's database, and what its failures mean."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError, UnavailableError
from s2v_tasks.settings import Settings

# PostgreSQL says these only in words when it refuses a connection: the driver has no SQLSTATE at that moment.
_REFUSALS = ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry")


def engine_from_settings(settings: Settings) -> sa.Engine:
    """The engine of this installation; ConfigurationError when no database is configured.

    It carries the configured webhook, so that whoever writes an event down also writes down whom to tell.
    """
    if settings.database_url is None:
        raise ConfigurationError(
            "S2V_DATABASE_URL is not set: expected postgresql://user:password@host:port/database "
            "(`s2v up` starts an embedded server and sets it)."
        )
    webhook_url = settings.webhook_url and settings.webhook_url.get_secret_value()
    return create_engine(settings.database_url.get_secret_value()).execution_options(webhook_url=webhook_url)


def create_engine(url: str) -> sa.Engine:
    """An engine on psycopg 3 for a PostgreSQL URL; connects on first use, with short timeouts and UTC."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.get_backend_name() not in {"postgresql", "postgres"} or not parsed.database:
        raise ConfigurationError(
            "S2V_DATABASE_URL: expected postgresql://user:password@host:port/database (the value is not shown)."
        )
    return sa.create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_size=2,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 10,
            "application_name": "s2v",
            "options": "-c timezone=UTC -c statement_timeout=60s -c idle_in_transaction_session_timeout=60s",
        },
    )


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One short transaction; a failure of the database becomes one of our errors.

    TransientError: it cannot be reached. ConfigurationError: it refuses us or lacks the tables. PermanentError: it
    cannot hold a value.
    """
    with _translated(engine), engine.begin() as connection:
        yield connection


@contextmanager
def sole_holder(engine: sa.Engine, lock: int, busy: str) -> Iterator[None]:
    """Hold an advisory lock, which ends with this process at the latest; TransientError(busy) when another has it."""
    with _translated(engine), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(lock))).scalar_one():
            raise TransientError(busy)
        try:
            yield
        finally:
            connection.execute(sa.select(sa.func.pg_advisory_unlock(lock)))


@contextmanager
def _translated(engine: sa.Engine) -> Iterator[None]:
    try:
        yield
    # A standby that takes over lets nobody write for a moment: psycopg calls that an internal error.
    except (OperationalError, InterfaceError, InternalError) as error:
        raise _unavailable(engine.url, error) from error
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) in {"42P01", "42703"}:  # undefined table, undefined column
            raise ConfigurationError(
                f"Database {_place(engine.url)} has not the expected tables ({_line(error)}): run `s2v db upgrade`."
            ) from error
        raise
    except (DataError, UnicodeEncodeError) as error:
        line = _line(error) if isinstance(error, DataError) else str(error)
        raise PermanentError(
            f"Database {_place(engine.url)} cannot hold a value ({line}): expected text without NUL and lone "
            "surrogates, and numbers in the range of their column."
        ) from error


def _unavailable(url: URL, error: DBAPIError) -> ConfigurationError | UnavailableError:
    line = _line(error)
    if any(refusal in line for refusal in _REFUSALS):
        return ConfigurationError(f"Database {_place(url)} refuses the connection ({line}): check S2V_DATABASE_URL.")
    return UnavailableError(
        f"Database {_place(url)} cannot be used ({line}): check that it runs (`s2v up` starts the embedded one) "
        "and that S2V_DATABASE_URL names it."
    )


def _line(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())


def _place(url: URL) -> str:
    return f"{url.host or 'localhost'}:{url.port or 5432}/{url.database}"
