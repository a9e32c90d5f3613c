"""Connections to the project's database, and the translation of its errors.

There are no session settings, prepared statements or session locks, so PgBouncer may give each transaction another
server connection.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    TimeoutError,
)

from s2v_tasks.errors import ConfigurationError, PermanentError, TransientError, UnavailableError
from s2v_tasks.metadata.database_url import DatabaseTarget, parse_database_url
from s2v_tasks.settings import Settings
from s2v_tasks.stack_env import embedded_remedy

# PostgreSQL and PgBouncer refuse a connection with these messages, without an SQLSTATE.
_REFUSALS = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "not permitted to log in",
    "permission denied",
    "no such database",
    "no such user",
    # options of the URL
    "unsupported startup parameter",
    "unrecognized configuration parameter",
    'parameter "',
    "invalid command-line argument",
    # TLS
    "does not support SSL",
    "SSL required",
    "certificate",
    "private key file",
)
_NO_TABLES = {"42P01", "42703"}  # undefined table, undefined column
# Faults of a server that runs, by words of its messages; all other ones mean that no server answers.
_REMEDIES = {
    "read-only transaction": "S2V_DATABASE_URL must name the primary server, which accepts writes",
    "too many clients": "raise max_connections, or use PgBouncer (docs/metadata.md)",
    "too many connections": "raise the limit of connections, or use PgBouncer (docs/metadata.md)",
    "connection slots": "raise max_connections, or use PgBouncer (docs/metadata.md)",
    "No space left on device": "free space on the disk of the server",
}
_IS_AWAY = "check that it runs (`s2v up` starts the embedded one) and that S2V_DATABASE_URL names it"
_TIME_LIMITS_OF_A_TRANSACTION = ("idle_in_transaction_session_timeout", "transaction_timeout")


def engine_from_settings(settings: Settings) -> sa.Engine:
    """Return the engine of this installation; ConfigurationError when no database is configured."""
    return create_engine(configured_url(settings))


def configured_url(settings: Settings) -> str:
    """Return the URL of the database of this installation; ConfigurationError when none is configured."""
    if settings.database_url is None:
        raise ConfigurationError(
            "S2V_DATABASE_URL is not set: expected postgresql://user:password@host:port/database." + embedded_remedy()
        )
    return settings.database_url.get_secret_value()


def create_engine(url: str) -> sa.Engine:
    """Return an engine on psycopg 3 for a PostgreSQL URL; ConfigurationError if the URL is wrong.

    It connects on first use.

    The engine's own URL is empty, so that no message or log can show a part of it.
    """
    target = parse_database_url(url)
    defaults = {"connect_timeout": "10", "application_name": "s2v"}
    engine = sa.create_engine(
        "postgresql+psycopg://",
        pool_size=2,
        pool_pre_ping=True,
        hide_parameters=True,
        use_native_hstore=False,
        connect_args=defaults | target.parameters | {"prepare_threshold": None},
        execution_options={"target": target},
    )
    sa.event.listen(engine, "do_connect", partial(_connect, target))
    return engine


class _Connection(psycopg.Connection[Any]):
    """A connection that does not show the name of its user: SQLAlchemy logs its connections."""

    def __repr__(self) -> str:
        return f"<connection {id(self):#x}>"


def _connect(target: DatabaseTarget, *arguments: Any) -> _Connection:
    """Connect with the last of SQLAlchemy's arguments, which logs an error of this function before it is translated.

    ConfigurationError if the database cannot store all characters.
    """
    try:
        connection = _Connection.connect(**arguments[-1])
    except psycopg.Error as error:
        raise type(error)(target.without_credentials(str(error))) from None
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        connection.close()
        raise ConfigurationError(
            f"Database {target.place} has the encoding {encoding}, expected UTF8: create it with "
            "`createdb --encoding UTF8 --template template0`."
        )
    return connection


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Run one short transaction; translate a failure of the database into an error of this system.

    UnavailableError: it cannot be reached. ConfigurationError: it refuses us or lacks the tables. PermanentError: it
    cannot hold a value.
    """
    with _translated(engine), engine.begin() as connection:
        settings = _target(engine).transaction_settings
        connection.execute(sa.select(*(sa.func.set_config(name, value, True) for name, value in settings.items())))
        yield connection


@contextmanager
def sole_holder(engine: sa.Engine, lock: int, busy: str) -> Iterator[None]:
    """Hold the advisory lock of this schema during the block; TransientError(busy) if another process has it.

    The lock belongs to a transaction without a time limit. It ends with this process at the latest.
    """
    limits = sa.table("pg_settings", sa.column("name"))
    unlimited = sa.select(sa.func.set_config(limits.c.name, "0", True))
    schema = sa.func.hashtext(sa.func.coalesce(sa.func.current_schema(), ""))
    with transaction(engine) as connection:
        connection.execute(unlimited.where(limits.c.name.in_(_TIME_LIMITS_OF_A_TRANSACTION))).all()
        if not connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(lock, schema))).scalar_one():
            raise TransientError(busy)
        yield


@contextmanager
def _translated(engine: sa.Engine) -> Iterator[None]:
    """Translate errors of the driver. They are not chained: they show the user name, and values with secrets."""
    target = _target(engine)
    try:
        yield
    # A standby that takes over is read-only for a moment, which psycopg reports as an internal error.
    except (OperationalError, InterfaceError, InternalError) as error:
        raise _unavailable(target, error) from None
    except TimeoutError as error:
        raise UnavailableError(
            f"Database {target.place}: all connections of this process are in use ({error})."
        ) from None
    except ProgrammingError as error:
        if (known := _misconfigured(target, error)) is not None:
            raise known from None
        raise
    except (DataError, UnicodeEncodeError) as error:
        if isinstance(error, DataError) and _sqlstate(error) == "22023":
            raise _refused(target, error) from None
        raise _not_storable(target, _line(target, error) if isinstance(error, DataError) else str(error)) from None


def _unavailable(target: DatabaseTarget, error: DBAPIError) -> PermanentError | UnavailableError:
    line = _line(target, error)
    if _sqlstate(error).startswith("54"):  # program limit exceeded: the text is too long for an index
        return _not_storable(target, line)
    if any(refusal in line for refusal in _REFUSALS):
        return _refused(target, error)
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in line), _IS_AWAY)
    return UnavailableError(f"Database {target.place} cannot be used ({line}): {remedy}.")


def _refused(target: DatabaseTarget, error: DBAPIError) -> ConfigurationError:
    line = _line(target, error)
    remedy = "check S2V_DATABASE_URL"
    if "authentication failed" in line:
        remedy += ", and percent-encode user and password in it"
    if "unsupported startup parameter" in line:
        remedy = "PgBouncer takes no options from S2V_DATABASE_URL; set them with ALTER ROLE instead"
    return ConfigurationError(f"Database {target.place} refuses the connection ({line}): {remedy}.")


def _misconfigured(target: DatabaseTarget, error: ProgrammingError) -> ConfigurationError | None:
    line = _line(target, error)
    match _sqlstate(error):
        case state if state in _NO_TABLES:
            what = f"does not have the expected tables ({line}): run `s2v db upgrade`"
        case "3F000":  # no schema of the search_path exists
            what = f"does not have the schema of the search_path ({line}): create it with CREATE SCHEMA"
        case "42501":  # insufficient privilege
            what = f"refuses a statement ({line}): grant the user of S2V_DATABASE_URL the rights on schema and tables"
        case _:
            return None
    return ConfigurationError(f"Database {target.place} {what}.")


def _not_storable(target: DatabaseTarget, line: str) -> PermanentError:
    return PermanentError(
        f"Database {target.place} cannot hold a value ({line}): expected text without NUL and lone "
        "surrogates, and numbers in the range of their column."
    )


def _target(engine: sa.Engine) -> DatabaseTarget:
    target: DatabaseTarget = engine.get_execution_options()["target"]
    return target


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _line(target: DatabaseTarget, error: DBAPIError) -> str:
    return target.without_credentials(" ".join(str(error.orig).split()))
