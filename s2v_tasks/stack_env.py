"""The file `stack.env`, in which the embedded stack leaves its settings for all commands in its folder."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

# The addresses of servers. With another one in the environment, the other settings of the file do not fit.
_SERVERS = ("S2V_DATABASE_URL", "S2V_S3_ENDPOINT_URL")
_UNSEEN = "\ufeff\u200b"  # byte order mark and zero-width space, which editors and web pages add


def stack_env_path() -> Path:
    """Return the path of the file with the addresses and credentials of the embedded stack."""
    return Path(stripped(os.environ.get("S2V_HOME", "")) or ".s2v") / "stack.env"


def fitting_stack_env() -> Path | None:
    """Return the path of the file; None if the environment names other servers than the file.

    Otherwise settings that an installation with its own servers leaves out would be those of the embedded stack.
    """
    given = {name: value for name in _SERVERS if (value := stripped(os.environ.get(name, "")))}
    written = dotenv_values(stack_env_path(), encoding="utf-8") if given else {}
    others = [name for name, value in given.items() if written.get(name) and _host(value) != _host(written[name] or "")]
    return None if others else stack_env_path()


def embedded_remedy() -> str:
    """Return the remedy for settings that only the embedded stack writes; empty if it has written its file."""
    if stack_env_path().exists():
        return ""
    path = str(stack_env_path().absolute()).encode("utf-8", "backslashreplace").decode()
    return f" For the embedded stack, run `make up`, and commands in the same folder: {path} does not exist."


def stripped(value: str) -> str:
    """Return `value` without white space and invisible characters around it."""
    return re.sub(rf"^[\s{_UNSEEN}]+|[\s{_UNSEEN}]+$", "", value)


def _host(url: str) -> str:
    """Return host and port of a URL; the text itself if it is no URL."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        return url
