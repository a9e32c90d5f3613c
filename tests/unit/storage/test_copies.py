"""Copy objects with as few requests as S3 allows."""

from typing import Any

import pytest

from s2v_tasks.storage.s3 import ObjectStore

FIVE_GIB = 5 * 2**30


class Client:
    """A client that notes which of its operations copies."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def copy_object(self, **_: Any) -> None:
        self.used.append("one request")

    def copy(self, *_: Any, **__: Any) -> None:
        self.used.append("parts")


@pytest.mark.parametrize(
    ("size_bytes", "way"), [(0, "one request"), (FIVE_GIB, "one request"), (FIVE_GIB + 1, "parts")]
)
def test_an_object_is_copied_in_parts_beyond_five_gibibytes(
    size_bytes: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 copies up to this size in one request and refuses more."""
    store = ObjectStore("s3://bucket", endpoint_url="http://127.0.0.1:9", access_key_id="a", secret_access_key="b")
    client = Client()
    monkeypatch.setattr(ObjectStore, "_client", client)
    store.copy("from", "to", size_bytes=size_bytes)
    assert client.used == [way]
