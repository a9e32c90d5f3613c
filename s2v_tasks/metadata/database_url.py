"""Parse a database URL like libpq, and refuse a wrong URL before any connection.

Messages never repeat a part of the URL that may be a piece of a user name or a password.
"""

import difflib
import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from s2v_tasks.errors import ConfigurationError

# PgBouncer refuses start-up `options` and shares server connections, so these are set per transaction.
_PER_TRANSACTION = {"search_path", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"}
_DEFAULTS = {"statement_timeout": "60s", "idle_in_transaction_session_timeout": "60s"}
_ALWAYS = {"timezone": "UTC"}  # all times are read and written as UTC
_OPTIONS = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
_INTEGERS = {"connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"}
_INTEGERS |= {"tcp_user_timeout"}
_SECRETS = ("password", "user", "sslpassword", "oauth_client_secret")
_EXPECTED = {
    "sslmode": "disable, allow, prefer, require, verify-ca or verify-full",
    "port": "a number from 1 to 65535, or one for each host",
    "connect_timeout": "a number of seconds",
    "target_session_attrs": "any, read-write, read-only, primary, standby or prefer-standby",
    "channel_binding": "disable, prefer or require",
    "gssencmode": "disable, prefer or require",
}
_NOWHERE = "/nonexistent"  # no server listens on a socket there


@dataclass(frozen=True)
class DatabaseTarget:
    """Target of a URL: parameters of libpq, settings of each transaction, and the address without user and password."""

    parameters: dict[str, str] = field(repr=False)
    transaction_settings: dict[str, str]
    place: str

    def without_credentials(self, text: str) -> str:
        """Return the text with *** for the user name, the password and their percent-encoded forms."""
        for name in _SECRETS:
            if value := self.parameters.get(name):
                for form in (value, quote(value, safe="")):
                    text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "***", text)
        return text


def parse_database_url(url: str) -> DatabaseTarget:
    """Return the target of a PostgreSQL URL; ConfigurationError names the problem without showing the URL."""
    scheme = re.match(r"postgres(ql)?(\+\w+)?://", url, re.IGNORECASE)
    if scheme is None:
        raise _error("it does not begin with postgresql://")
    rest = url[scheme.end() :]
    credentials, at, address = rest.rpartition("@")
    if "@" in credentials or "/" in credentials or re.search(r"\s|%(?![0-9A-Fa-f]{2})", rest):
        raise _error(
            "it has an @, /, % or blank that is not encoded: percent-encode user and password (@ is %40, / is %2F, % "
            "is %25), and any @ after the host"
        )
    address, _, query = address.partition("?")
    query = "&".join(_known_options(query))
    try:
        parameters = {
            name: str(value)
            for name, value in conninfo_to_dict(f"postgresql://{credentials}{at}{address}?{query}").items()
        }
    except (psycopg.Error, UnicodeError):
        raise _error("PostgreSQL cannot read it: check it, and percent-encode user and password") from None
    _check_values(parameters)
    settings, options = _split_options(parameters.pop("options", ""))
    if options:
        parameters["options"] = options
    return DatabaseTarget(parameters, _DEFAULTS | settings | _ALWAYS, _place(parameters))


def _error(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"S2V_DATABASE_URL: {why}; expected postgresql://user:password@host:port/database (the value is not shown)."
    )


def _known_options(query: str) -> list[str]:
    """Return the options after the question mark, without `pgbouncer=true`, which only other drivers use."""
    options = [option for option in query.split("&") if option]
    names = [unquote(option.partition("=")[0]) for option in options]
    for position, name in enumerate(names, 1):
        if name not in _OPTIONS | {"ssl", "pgbouncer"}:
            similar = difflib.get_close_matches(name, sorted(_OPTIONS), n=1)
            hint = f"did you mean {similar[0]}?" if similar else "remove it"
            raise _error(f"PostgreSQL does not know option {position} after the ?: {hint} (a & in a value is %26)")
        if name in names[: position - 1]:
            raise _error(f"it has the option {name} twice: write several hosts as host1:port1,host2:port2/database")
    return [option for option, name in zip(options, names, strict=True) if name != "pgbouncer"]


def _check_values(parameters: dict[str, str]) -> None:
    """Let libpq check the values. It checks them before it connects to a socket on which no server listens."""
    if not parameters.get("dbname") and "service" not in parameters:
        raise _error("it has no name of a database")
    for name in sorted(_INTEGERS & parameters.keys()):
        if not re.fullmatch(r"-?\d{1,9}", parameters[name]):
            raise _bad_value(name)
    hosts = parameters.get("hostaddr", parameters.get("host", "")).split(",")
    for host in hosts:
        try:
            host.encode("utf-8" if host.startswith(("/", "@")) else "idna")
        except UnicodeError:
            raise _error("its host is not a host name: percent-encode user and password") from None
    nowhere = {"host": ",".join(_NOWHERE for _ in hosts)}
    if parameters.get("gssencmode") == "require":  # good, but not on a socket
        nowhere["gssencmode"] = "disable"
    conninfo = make_conninfo("", **{name: value for name, value in parameters.items() if name != "hostaddr"} | nowhere)
    connection = pq.PGconn.connect_start(conninfo.encode())
    message = connection.get_error_message()
    connection.finish()
    if _NOWHERE in message:
        return
    names = [word for word in re.findall(r"\w+", message) if word in _OPTIONS]
    if "service" in names:
        raise _error("the service that it names is not in pg_service.conf")
    raise _bad_value(names[0] if names else "")


def _bad_value(name: str) -> ConfigurationError:
    expected = f", expected {_EXPECTED[name]}" if name in _EXPECTED else ""
    return _error(f"PostgreSQL does not accept the value of {name or 'one of its options'}{expected}")


def _split_options(options: str) -> tuple[dict[str, str], str]:
    """Split start-up `options` into settings that a transaction can set, and all others."""
    settings, others = {}, []
    words = iter(re.findall(r"(?:\\.|\S)+", options))
    for word in words:
        argument = f"-c{next(words, '')}" if word == "-c" else word
        name, _, value = re.sub(r"\\(.)", r"\1", argument).removeprefix("-c").removeprefix("--").partition("=")
        name = name.lower().replace("-", "_")
        if argument.startswith(("-c", "--")) and name in _PER_TRANSACTION:
            settings[name] = value
        else:
            others.append(argument)
    return settings, " ".join(others)


def _place(parameters: dict[str, str]) -> str:
    """Return host:port/database of each host."""
    database = parameters.get("dbname", "")
    if "service" in parameters and "host" not in parameters:
        return f"of service {parameters['service']}" + (f", {database}" if database else "")
    hosts = (parameters.get("host") or parameters.get("hostaddr") or "localhost").split(",")
    ports = parameters.get("port", "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    places = [
        f"{f'[{host}]' if ':' in host else host}:{port or '5432'}" for host, port in zip(hosts, ports, strict=True)
    ]
    return f"{','.join(places)}/{database}"
