"""Connections to the ledger's database: what is wrong with one, and what to do."""

import psycopg
import pytest
from sqlalchemy.engine import make_url

from s2v_tasks.embedded.process import free_ports
from s2v_tasks.errors import ConfigurationError, TransientError
from s2v_tasks.metadata.repository import Ledger
from s2v_tasks.metadata.session import create_engine, engine_from_settings
from s2v_tasks.settings import Settings


def test_a_database_without_tables_names_the_remedy(postgres_url: str) -> None:
    """A database that was never migrated is a configuration error."""
    engine = create_engine(str(make_url(postgres_url).set(database="postgres").render_as_string(hide_password=False)))
    with pytest.raises(ConfigurationError, match="s2v db upgrade"):
        Ledger(engine).jobs()
    engine.dispose()


@pytest.mark.parametrize("change", [{"password": "wrong-secret"}, {"database": "nowhere"}])
def test_a_refused_connection_is_a_configuration_error(postgres_url: str, change: dict[str, str]) -> None:
    """A wrong password or database name is told without the password."""
    url = make_url(postgres_url).set(**change)  # type: ignore[arg-type]
    engine = create_engine(url.render_as_string(hide_password=False))
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{url.port}/{url.database} refuses") as caught:
        Ledger(engine).jobs()
    assert str(url.password) not in str(caught.value)
    engine.dispose()


def test_a_server_that_is_away_is_a_transient_error() -> None:
    """A refused connection may succeed later; the message names host, port and database, not the password."""
    port = free_ports(1)[0]
    engine = create_engine(f"postgresql://s2v:a-secret@127.0.0.1:{port}/s2v")
    with pytest.raises(TransientError, match=f"127.0.0.1:{port}/s2v cannot be used") as caught:
        Ledger(engine).job_queued("job-1", {"prompt": "A person speaks."})
    assert "a-secret" not in str(caught.value)
    engine.dispose()


def test_a_database_that_only_reads_is_a_transient_error(postgres_url: str) -> None:
    """So is one in the middle of a failover; a render goes on without its progress."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {make_url(postgres_url).database} SET default_transaction_read_only = on")
    engine = create_engine(postgres_url)
    with pytest.raises(TransientError, match=r"cannot be used .*read-only"):
        Ledger(engine).job_queued("job-1", {"prompt": "A person speaks."})
    engine.dispose()


@pytest.mark.parametrize("url", ["", "mysql://u:a-secret@host/db", "postgresql://u:a-secret@host", "a-secret"])
def test_a_url_that_is_none_is_refused_without_showing_it(url: str) -> None:
    """A bad URL is a configuration error that does not repeat it: it may have a password."""
    with pytest.raises(ConfigurationError, match="S2V_DATABASE_URL") as caught:
        create_engine(url)
    assert "a-secret" not in str(caught.value)


def test_no_database_is_a_configuration_error() -> None:
    """Without a setting the message says how to get a database."""
    with pytest.raises(ConfigurationError, match="S2V_DATABASE_URL is not set"):
        engine_from_settings(Settings())  # type: ignore[call-arg]
