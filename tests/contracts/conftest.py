"""Fixtures that run the same tests on every S3 server that the system supports."""

import uuid
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import pytest

from s2v_tasks.embedded.object_store import S3Server
from s2v_tasks.storage.s3 import ObjectStore


@pytest.fixture(scope="session")
def seaweedfs(server_home: Path) -> Iterator[S3Server]:
    """A running embedded S3 server."""
    server = S3Server(server_home)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session", params=["moto", "seaweedfs"])
def server_store(request: pytest.FixtureRequest) -> ObjectStore:
    """A store on each kind of server."""
    if request.param == "moto":
        endpoint, key, secret = request.getfixturevalue("moto_endpoint"), "test", "test-secret"
    else:
        server: S3Server = request.getfixturevalue("seaweedfs")
        endpoint, key, secret = server.endpoint_url, server.access_key_id, server.secret_access_key
    store = ObjectStore("s3://contracts", endpoint_url=endpoint, access_key_id=key, secret_access_key=secret)
    store.ensure_bucket()
    return store


@pytest.fixture
def store(server_store: ObjectStore) -> ObjectStore:
    """A store with a prefix of its own; it shares the connections of the session's."""
    own = copy(server_store)
    own.prefix = uuid.uuid4().hex
    return own
