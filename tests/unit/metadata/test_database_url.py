"""Check database URLs: their parts, and the messages about wrong ones."""

from pathlib import Path
from urllib.parse import quote

import pytest

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.metadata.database_url import parse_database_url

HOW = r"expected postgresql://user:password@host:port/database \(the value is not shown\)"


@pytest.mark.parametrize(
    "password", ["p@ss", "p/ss", "p:ss", "p#ss", "p?ss", "p%ss", "p%41", "p ss", "päß", "&=+;$,[]'\"\\"]
)
def test_a_percent_encoded_password_is_decoded(password: str) -> None:
    """Every character can be encoded, in user name and password."""
    target = parse_database_url(f"postgresql://{quote(password, safe='')}:{quote(password, safe='')}@host/db")
    assert (target.parameters["user"], target.parameters["password"]) == (password, password)
    assert target.place == "host:5432/db"
    assert password not in repr(target)


@pytest.mark.parametrize(
    ("url", "host", "port", "place"),
    [
        ("postgres://u:p@host:5433/db", "host", "5433", "host:5433/db"),
        ("POSTGRESQL+psycopg2://u:p#?:@host/db", "host", None, "host:5432/db"),
        ("postgresql://u:p@[2001:db8::1]:5433/db", "2001:db8::1", "5433", "[2001:db8::1]:5433/db"),
        ("postgresql://u:p@a:1,b/db?target_session_attrs=read-write", "a,b", "1,", "a:1,b:5432/db"),
        ("postgresql://u:p@/db?host=a,b&port=7", "a,b", "7", "a:7,b:7/db"),
        ("postgresql://u@%2Fvar%2Frun%2Fpostgresql/db", "/var/run/postgresql", None, "/var/run/postgresql:5432/db"),
        (f"postgresql:///db?host=/{'long' * 20}", f"/{'long' * 20}", None, f"/{'long' * 20}:5432/db"),
        ("postgresql:///db", None, None, "localhost:5432/db"),
        ("postgresql://u:p@/db?hostaddr=10.0.0.1", None, None, "10.0.0.1:5432/db"),
        ("postgresql://u:p@münchen.example/db", "münchen.example", None, "münchen.example:5432/db"),
    ],
)
def test_every_kind_of_host_is_accepted(url: str, host: str | None, port: str | None, place: str) -> None:
    """A host may be a name, an IPv6 address, several hosts, a folder of sockets, or missing."""
    target = parse_database_url(url)
    assert (target.parameters.get("host"), target.parameters.get("port"), target.place) == (host, port, place)


def test_a_service_completes_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service file of libpq completes the URL; an unknown service is refused."""
    (tmp_path / "services").write_text("[prod]\nhost=db.example\ndbname=s2v\n", encoding="utf-8")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    target = parse_database_url("postgresql:///?service=prod")
    assert (target.parameters, target.place) == ({"service": "prod"}, "of service prod")
    assert parse_database_url("postgresql:///db?service=prod").place == "of service prod, db"
    assert parse_database_url("postgresql://host/db?service=prod").place == "host:5432/db"
    with pytest.raises(ConfigurationError, match=f"the service that it names is not in pg_service.conf; {HOW}"):
        parse_database_url("postgresql:///?service=test")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://us@er:planted@host/db",
        "postgresql://user:plan@ted@host/db",
        "postgresql://user:plan/ted@host/db",
        "postgresql://user:plan?t/ed@host/db",
        "postgresql://user:plan%ted@host/db",
        "postgresql://user:planted%@host/db",
        "postgresql://user:plan ted@host/db",
        "postgresql://user:planted%ff@host/db",
        "postgresql://user:planted%00@host/db",
        "postgresql://user:plan@t..ed/db",
        "postgresql://host/db?user=me@here",
        f"postgresql://user:planted@{'h' * 64}.example/db",
    ],
)
def test_a_password_that_is_not_encoded_is_refused_without_showing_it(url: str) -> None:
    """The message has the remedy and no part of the URL."""
    with pytest.raises(ConfigurationError, match="percent-encode user and password") as caught:
        parse_database_url(url)
    said = str(caught.value).removesuffix(
        "expected postgresql://user:password@host:port/database (the value is not shown)."
    )
    assert not [word for word in ("plan", "ted", "us@er", "t..ed", "me@here", "hhh") if word in said]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("sslmode=requier", "the value of sslmode, expected disable, allow, prefer, require, verify-ca or verify-full"),
        ("sslmod=require", r"does not know option 1 after the \?: did you mean sslmode\?"),
        ("sslmode=require&pool_size=3", r"does not know option 2 after the \?: remove it \(a & in a value is %26\)"),
        ("password=planted&planted", r"does not know option 2 after the \?"),
        ("connect_timeout=soon", "the value of connect_timeout, expected a number of seconds"),
        ("keepalives_idle=1.5", "the value of keepalives_idle;"),
        ("tcp_user_timeout=x", "the value of tcp_user_timeout;"),
        ("port=0", "the value of port, expected a number from 1 to 65535, or one for each host"),
        ("port=planted", "the value of port, expected"),
        ("host=a,b&port=1,2,3", "the value of port, expected"),
        ("host=a&host=b", "it has the option host twice: write several hosts as host1:port1,host2:port2/database"),
        ("target_session_attrs=primry", "the value of target_session_attrs, expected any, read-write"),
        ("channel_binding=x", "the value of channel_binding, expected disable, prefer or require"),
        ("gssencmode=x", "the value of gssencmode, expected"),
        ("load_balance_hosts=x", "the value of load_balance_hosts;"),
        ("sslmode", "cannot read it"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_connects(options: str, why: str) -> None:
    """The message names the option without its value, which may be part of a password."""
    with pytest.raises(ConfigurationError, match=f"S2V_DATABASE_URL: .*{why}.*{HOW}") as caught:
        parse_database_url(f"postgresql://host/db?{options}")
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "options", ["sslmode=verify-full&sslrootcert=system", "gssencmode=require", "ssl=true", "keepalives=0"]
)
def test_a_good_option_is_kept(options: str) -> None:
    """libpq gets its options, and the unknown option `pgbouncer=true` is removed."""
    target = parse_database_url(f"postgresql://host/db?pgbouncer=true&{options}")
    expected = {"sslmode": "require"} if options == "ssl=true" else dict(o.split("=") for o in options.split("&"))
    assert target.parameters == {"host": "host", "dbname": "db"} | expected


@pytest.mark.parametrize(
    "url", ["", "mysql://u:planted@host/db", "postgresql:/u:planted@host/db", "planted", "host=planted"]
)
def test_another_url_is_refused(url: str) -> None:
    """A URL with another scheme is refused."""
    with pytest.raises(ConfigurationError, match=f"does not begin with postgresql://; {HOW}") as caught:
        parse_database_url(url)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:planted@host", "postgresql://u:planted@host/", "postgresql://u:planted@host?sslmode=require"],
)
def test_a_url_names_a_database(url: str) -> None:
    """A URL without the name of a database is refused."""
    with pytest.raises(ConfigurationError, match="it has no name of a database") as caught:
        parse_database_url(url)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "settings", "others"),
    [
        ("-c search_path=mine", {"search_path": "mine"}, None),
        ('-csearch_path="Mi\\ ne",public -c jit=off', {"search_path": '"Mi ne",public'}, "-cjit=off"),
        ("--statement-timeout=5s --jit=off -E", {"statement_timeout": "5s"}, "--jit=off -E"),
        ("-c IDLE_in_transaction_session_timeout=7", {"idle_in_transaction_session_timeout": "7"}, None),
        ("-c lock_timeout=1s", {"lock_timeout": "1s"}, None),
        ("endpoint=search_path", {}, "endpoint=search_path"),
        ("-c", {}, "-c"),
        ("-c timezone=CET", {}, "-ctimezone=CET"),
    ],
)
def test_options_that_a_transaction_can_set_are_no_startup_parameter(
    options: str, settings: dict[str, str], others: str | None
) -> None:
    """Options such as time limits override the defaults in each transaction; others reach the server unchanged."""
    target = parse_database_url(f"postgresql://host/db?options={quote(options)}")
    ours = {"statement_timeout": "60s", "idle_in_transaction_session_timeout": "60s", "timezone": "UTC"}
    assert target.transaction_settings == ours | settings
    assert target.parameters.get("options") == others


def test_names_and_passwords_are_taken_out_of_a_text() -> None:
    """User and password are hidden as whole words, plain and encoded."""
    target = parse_database_url("postgresql://ann%40x:se%2Fcret@host/db?sslpassword=third")
    said = target.without_credentials('user "ann@x" (ann%40x) gave se/cret, se%2Fcret and third, thirdly')
    assert said == 'user "***" (***) gave ***, *** and ***, thirdly'
